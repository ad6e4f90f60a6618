"""Plain layers and cells without gradients, in as few calls as can be, on CPUs.

A small layer's step takes a few microseconds, and each call of torch's around it as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import _arguments
from fastrnn._calls import below_autograd
from fastrnn._cell import Tensors
from fastrnn.cells import CELLS

_LAYERS = torch.ops.fastrnn.recurrence_layers.default
_STEP = torch.ops.fastrnn.recurrence_step.default


def run_layers(
    cell: str,
    rows: Tensor,
    states: Tensors,
    weights: Sequence[Sequence[Tensor]],
    hidden_size: int,
    packed: bool = False,
) -> tuple[Tensor, Tensors]:
    """What `wavefront.run_stack` does, without gradients and over padded rows.

    Args:
        cell: a key of `COMPILED`.
        rows: [T, B, I].
        states: S of [L, B, H], or none: zeros.
        weights: of each layer weight_ih and weight_hh, or both packed, and maybe both biases.
        hidden_size: H.
        packed: whether they are; default False.

    Returns:
        The last layer's output [T, B, H]; the last states, shaped as `states`.
    """
    steps, batch = rows.shape[:2]
    flat = [tensor for each in weights for tensor in each]
    options = (steps, hidden_size, cell, len(weights[0]) > 2, packed)
    try:
        output, *last = below_autograd(_LAYERS, rows.flatten(0, 1), states, flat, *options)
    except RuntimeError:
        if not packed:
            name_misfit(cell, rows, batch, hidden_size, weights)
        raise
    return output.view(steps, batch, hidden_size), tuple(last)


def run_step(
    cell: str, input: Tensor, states: Tensors, weights: Sequence[Tensor], hidden_size: int
) -> Tensors:
    """The states after one step: arguments of `run_layers`, but without T and L."""
    try:
        return below_autograd(_STEP, input, states, weights, cell)
    except RuntimeError:
        name_misfit(cell, input, input.size(0), hidden_size, [weights])
        raise


def name_misfit(
    cell: str, rows: Tensor, batch: int, hidden_size: int, weights: Sequence[Sequence[Tensor]]
) -> None:
    """Raise the error of Python's checks if a layer's weights do not fit it."""
    below, states = rows, rows.new_empty(CELLS[cell].states, batch, hidden_size).unbind()
    for weight_ih, weight_hh, *biases in weights:
        given = (weight_ih, weight_hh, *(biases or (None, None)), None, batch)
        arguments: tuple[Any, ...] = (CELLS[cell], below, states, *given)
        _arguments.tensors(*arguments)
        below = states[0]


def _fake_layers(*args: Any) -> list[Tensor]:
    input, _, weights, steps, hidden_size, cell, bias, packed = args
    layers = len(weights) // ((1 if packed else 2) + (2 if bias else 0))
    shape = (layers, input.size(0) // steps, hidden_size)
    last = [input.new_empty(shape) for _ in range(CELLS[cell].states)]
    return [input.new_empty(input.size(0), hidden_size), *last]


def _fake_step(input: Tensor, states: Any, weights: list[Tensor], cell: str) -> list[Tensor]:
    shape = (input.size(0), weights[1].size(1))
    return [input.new_empty(shape) for _ in range(CELLS[cell].states)]


torch.library.register_fake("fastrnn::recurrence_layers", _fake_layers)
torch.library.register_fake("fastrnn::recurrence_step", _fake_step)
