"""Plain layers and cells over padded rows, in as few calls as can be, on CPUs.

A small layer's step takes a few microseconds, and each call of torch's around it as many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastrnn import _arguments
from fastrnn._arguments import WEIGHTS
from fastrnn._calls import again, applied, batched, below_autograd, need_gradients, second_order
from fastrnn._cell import Tensors
from fastrnn._recurrent import by_state
from fastrnn.bidirectional import run_both
from fastrnn.cells import CELLS
from fastrnn.wavefront import run_stack

_LAYERS = torch.ops.fastrnn.recurrence_layers.default
_BACKWARD = torch.ops.fastrnn.recurrence_layers_backward.default
_OPTIONS = 5  # of `Plain`, before its tensors


def run_layers(
    cell: str,
    rows: Tensor,
    states: Tensors,
    weights: Sequence[Sequence[Tensor]],
    hidden_size: int,
    bidirectional: bool = False,
    packed: bool = False,
    between: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensors]:
    """All layers over padded rows, without options but what acts between them.

    Args:
        cell: a key of `COMPILED`.
        rows: [T, B, I]; or [B, I], one step of a cell.
        states: S of [L*D, B, H] with D directions, a cell's [B, H]; or none: zeros.
        weights: of each layer and direction weight_ih and weight_hh, or both packed, and maybe both
            biases.
        hidden_size: H.
        bidirectional: whether D is 2; default False.
        packed: whether the weights are, which has no gradients; default False.
        between: what makes the next layer's input of a layer's output; default None.

    Returns:
        The last layer's output [T, B, D*H], a cell's [B, H]; the last states, shaped as `states`.
    """
    if between is not None:
        ends, each = [], 1 + bidirectional
        for k in range(0, len(weights), each):
            first = tuple(state[k : k + each] for state in states)
            of_layer = (weights[k : k + each], hidden_size, bidirectional, packed)
            rows, ended = run_layers(cell, between(rows) if k else rows, first, *of_layer)
            ends.append(ended)
        return rows, tuple(map(torch.cat, zip(*ends, strict=True)))
    flat = [tensor for each in weights for tensor in each]
    options = (hidden_size, cell, bidirectional, len(weights[0]) > 2)
    try:
        if need_gradients((rows, *states, *flat)):
            tensors = (rows.contiguous(), *states, *flat)  # once, as the backward pass reads it too
            output, *last = applied(Plain, len(states), *options, *tensors)
        else:
            output, *last = below_autograd(_LAYERS, rows, states, flat, *options, packed, False)
    except RuntimeError:
        if not packed:
            directions = 1 + bidirectional
            _arguments.layers(cell, rows, rows.size(-2), hidden_size, weights, directions)
        raise
    return output, tuple(last)


class Plain(torch.autograd.Function):
    """`fastrnn::recurrence_layers` with gradients: of the input, S states or none, the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        states: int,
        hidden_size: int,
        cell: str,
        bidirectional: bool,
        bias: bool,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        options = (hidden_size, cell, bidirectional, bias)
        found = below_autograd(_LAYERS, *_parts(tensors, states), *options, False, True)
        ends = 1 + CELLS[cell].states
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *found[ends:], *(() if bidirectional else found[:1]))
        ctx.states, ctx.options, ctx.tensors = states, options, len(tensors)
        return found[:ends]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[_OPTIONS:]
        if all(g is None for g in grads):
            return (None,) * (_OPTIONS + len(needs))
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
        return (*(None,) * _OPTIONS, *of_tensors)


def _parts(tensors: Tensors, states: int) -> tuple[Tensor, Tensors, Tensors]:
    """The input, the states and the weights."""
    return tensors[0], tensors[1 : 1 + states], tensors[1 + states :]


def _generally(
    states: int, hidden_size: int, cell: str, bidirectional: bool, bias: bool, *tensors: Tensor
) -> Sequence[Tensor]:
    """What `Plain` gives, of the operators that have gradients of every order."""
    input, given, weights = _parts(tensors, states)
    step, each = input.dim() == 2, 4 if bias else 2
    layers = [weights[i : i + each] for i in range(0, len(weights), each)]
    rows = input.unsqueeze(0) if step else input  # [T, B, I]
    if given:
        first = torch.stack([s.unsqueeze(0) if step else s for s in given], 1).unbind()
    else:
        zeros = rows.new_zeros(CELLS[cell].states, rows.size(1), hidden_size)
        first = (zeros,) * len(layers)
    ends: Sequence[Tensor] = []
    if bidirectional:
        for k in range(0, len(layers), 2):
            ways = [dict(zip(WEIGHTS, layer, strict=False)) for layer in layers[k : k + 2]]
            firsts = [state.unbind() for state in first[k : k + 2]]
            every = run_both(cell, rows, firsts, ways, None, False)
            rows = torch.cat([output for output, _, _ in every], -1)
            ends = [*ends, *(state_n for _, state_n, _ in every)]
    else:
        rows, ends, _ = run_stack(cell, rows, first, layers)
    found = (rows, *by_state(ends))
    return [t.squeeze(0) for t in found] if step else found


def _fake_layers(*args: Any) -> list[Tensor]:
    input, _, weights, H, cell, bidirectional, bias, packed, save = args
    c, steps, B = CELLS[cell], input.shape[:-2], input.size(-2)
    each, N = (1 if packed else 2) + (2 if bias else 0), math.prod((*steps, B))
    state = (*(len(weights) // each for _ in steps), B, H)
    saved = [(c.states - 1, N, H), (N, c.reserve * H), (N, H)] * (len(weights) // each)
    if not bidirectional:
        saved.pop()
    shapes = [(*steps, B, (1 + bidirectional) * H), *(state for _ in range(c.states))]
    return [input.new_empty(shape) for shape in (*shapes, *(saved if save else ()))]


def _fake_backward(*args: Any) -> list[Tensor]:
    input, states, weights, wanted = *args[2:5], args[-3:]
    every = ([input], states, weights)
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format) if want else t.new_empty(0)
        for tensors, want in zip(every, wanted, strict=True)
        for t in tensors
    ]


torch.library.register_fake("fastrnn::recurrence_layers", _fake_layers)
torch.library.register_fake("fastrnn::recurrence_layers_backward", _fake_backward)
