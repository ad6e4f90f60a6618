"""Plain layers and cells over padded rows, in as few calls as can be, on CPUs.

A small layer's step takes a few microseconds, and each call of torch's around it as many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastrnn import _arguments
from fastrnn._calls import again, applied, batched, below_autograd, need_gradients, second_order
from fastrnn._cell import Tensors
from fastrnn._recurrent import by_state
from fastrnn.cells import CELLS
from fastrnn.wavefront import run_stack

_LAYERS = torch.ops.fastrnn.recurrence_layers.default
_BACKWARD = torch.ops.fastrnn.recurrence_layers_backward.default


def run_layers(
    cell: str,
    rows: Tensor,
    states: Tensors,
    weights: Sequence[Sequence[Tensor]],
    hidden_size: int,
    packed: bool = False,
) -> tuple[Tensor, Tensors]:
    """What `wavefront.run_stack` does over padded rows alone.

    Args:
        cell: a key of `COMPILED`.
        rows: [T, B, I]; or [B, I], one step of a cell.
        states: S of [L, B, H], a cell's [B, H]; or none: zeros.
        weights: of each layer weight_ih and weight_hh, or both packed, and maybe both biases.
        hidden_size: H.
        packed: whether they are, which has no gradients; default False.

    Returns:
        The last layer's output [T, B, H], a cell's [B, H]; the last states, shaped as `states`.
    """
    flat = [tensor for each in weights for tensor in each]
    options = (hidden_size, cell, len(weights[0]) > 2)
    try:
        if need_gradients((rows, *states, *flat)):
            tensors = (rows.contiguous(), *states, *flat)  # once, as the backward pass reads it too
            output, *last = applied(Plain, len(states), *options, *tensors)
        else:
            output, *last = below_autograd(_LAYERS, rows, states, flat, *options, packed, False)
    except RuntimeError:
        if not packed:
            _arguments.layers(cell, rows, rows.size(-2), hidden_size, weights)
        raise
    return output, tuple(last)


class Plain(torch.autograd.Function):
    """`fastrnn::recurrence_layers` with gradients: of the input, S states or none, the weights."""

    @staticmethod
    def forward(
        ctx: Any, states: int, hidden_size: int, cell: str, bias: bool, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        options, ends = (hidden_size, cell, bias), 1 + CELLS[cell].states
        found = below_autograd(_LAYERS, *_parts(tensors, states), *options, False, True)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *found[ends:], found[0])
        ctx.states, ctx.options, ctx.tensors = states, options, len(tensors)
        return found[:ends]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        _, _, _, _, *needs = ctx.needs_input_grad
        if all(g is None for g in grads):
            return (None,) * (4 + len(needs))
        saved, states = ctx.saved_tensors, ctx.states
        tensors, saved = saved[: ctx.tensors], saved[ctx.tensors :]
        if second_order() or batched(grads):
            found = again(partial(_generally, states, *ctx.options), tensors, grads)
        else:
            of_output, *of_states = grads
            present = [g for g in of_states if g is not None]
            given = [torch.zeros_like(present[0]) if g is None else g for g in of_states if present]
            wanted = (needs[0], any(needs[1 : 1 + states]), any(needs[1 + states :]))
            arguments = (*_parts(tensors, states), saved, *ctx.options, *wanted)
            found = _BACKWARD(of_output, given, *arguments)
        of_tensors = (g if need else None for g, need in zip(found, needs, strict=True))
        return (None, None, None, None, *of_tensors)


def _parts(tensors: Tensors, states: int) -> tuple[Tensor, Tensors, Tensors]:
    """The input, the states and the weights."""
    return tensors[0], tensors[1 : 1 + states], tensors[1 + states :]


def _generally(
    states: int, hidden_size: int, cell: str, bias: bool, *tensors: Tensor
) -> Sequence[Tensor]:
    """What `Plain` gives, of the operator that has gradients of every order."""
    input, given, weights = _parts(tensors, states)
    step, each = input.dim() == 2, 4 if bias else 2
    layers = [weights[i : i + each] for i in range(0, len(weights), each)]
    rows = input.unsqueeze(0) if step else input  # [T, B, I]
    if given:
        first = torch.stack([s.unsqueeze(0) if step else s for s in given], 1).unbind()
    else:
        zeros = rows.new_zeros(CELLS[cell].states, rows.size(1), hidden_size)
        first = (zeros,) * len(layers)
    output, ends, _ = run_stack(cell, rows, first, layers)
    found = (output, *by_state(ends))
    return [t.squeeze(0) for t in found] if step else found


def _fake_layers(*args: Any) -> list[Tensor]:
    input, _, weights, H, cell, bias, packed, save = args
    c, steps, B = CELLS[cell], input.shape[:-2], input.size(-2)
    L, N = len(weights) // ((1 if packed else 2) + (2 if bias else 0)), math.prod((*steps, B))
    state = (*(L for _ in steps), B, H)
    saved = [(c.states - 1, N, H), (N, c.reserve * H), (N, H)] * L
    shapes = [(*steps, B, H), *(state for _ in range(c.states)), *(saved[:-1] if save else [])]
    return [input.new_empty(shape) for shape in shapes]


def _fake_backward(*args: Any) -> list[Tensor]:
    _, _, input, states, weights, _, _, _, _, *wanted = args
    every = ([input], states, weights)
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format) if want else t.new_empty(0)
        for tensors, want in zip(every, wanted, strict=True)
        for t in tensors
    ]


torch.library.register_fake("fastrnn::recurrence_layers", _fake_layers)
torch.library.register_fake("fastrnn::recurrence_layers_backward", _fake_backward)
