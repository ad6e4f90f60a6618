"""Layers one above the other as one operator: one launch on a CUDA device, one call on a CPU.

On the device, layer l works on a step while the layer above it works on one a little earlier. Where
that does not fit, and elsewhere, the operator is `fastrnn::recurrence` for each layer in turn; on a
CPU that saves what torch and Python take for every layer, as much as a short sequence's work. One
layer takes this way there, too: the operator has fewer arguments. Over padded rows there is one
with fewer still (`plain.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastrnn import _arguments, _cuda, ops
from fastrnn._autocast import lower_dtype
from fastrnn._calls import (
    again,
    applied,
    batched,
    below_autograd,
    by_functions,
    need_gradients,
    second_order,
    unsaved,
    watched,
)
from fastrnn._library import LIBRARY
from fastrnn.backends import chosen
from fastrnn.cells import COMPILED

_SINGLE = torch.ops.fastrnn.recurrence.default
_SINGLE_BACKWARD = torch.ops.fastrnn.recurrence_backward.default
_STACK = torch.ops.fastrnn.recurrence_stack.default
_STACK_BACKWARD = torch.ops.fastrnn.recurrence_stack_backward.default
_RESULTS = 4  # of each layer: output, state_n, cells, reserve
# What acts between layers or inside a step, and the launch does not know.
_WITHOUT = ("zoneout", "proj_size", "layer_norm", "recompute", "dropout")


def _by_layer(layers: Sequence[Any], bias: bool) -> list[Sequence[Any]]:
    each = 5 if bias else 3
    return [layers[i : i + each] for i in range(0, len(layers), each)]


def _single(rows: Tensor, layer: Sequence[Any], *options: Any) -> tuple[Any, ...]:
    """The arguments of `fastrnn::recurrence` up to `reverse`; options: the stack's up to `cell`."""
    batch_sizes, resets, cell = options
    state, weight_ih, weight_hh, *biases = layer
    tensors = (rows, state, weight_ih, weight_hh, *(biases or (None, None)), None, None)
    return (*tensors, batch_sizes, resets, None, None, [], cell, False)


def layer_by_layer(of_one: Any) -> Any:
    """The operator's function, made of what does one layer; takes `save` or not, as that does."""

    def of_all(input: Tensor, layers: Any, *options: Any) -> list[Tensor]:
        *rows, cell, bias = options[:4]
        found: list[Tensor] = []
        for layer in _by_layer(layers, bias):
            below = found[-_RESULTS] if found else input
            found += of_one(*_single(below, layer, *rows, cell), *options[4:])
        return found

    return of_all


def _backward_by_layer(of_one: Any) -> Any:
    """The same of the backward operator."""

    def of_all(
        grad_output: Tensor | None,
        grad_cells: Tensor | None,
        grad_state_n: list[Tensor],
        input: Tensor,
        layers: list[Tensor],
        *options: Any,
    ) -> list[Tensor]:
        batch_sizes, resets, saved, cell, bias, input_grad, state_grad, weight_grad = options
        every = _by_layer(layers, bias)
        found: list[Tensor] = []
        for k in reversed(range(len(every))):
            below = saved[3 * k - 3] if k else input
            forward = _single(below, every[k], batch_sizes, resets, cell)[:-2]
            grads = of_one(
                *(grad_output, grad_state_n[k] if grad_state_n else None, grad_cells),
                *(*forward, *saved[3 * k : 3 * k + 3], cell, False),
                *(k > 0 or input_grad, weight_grad),
            )
            grad_output, grad_cells = grads[0], None
            of_state = grads[1] if state_grad else grads[1].new_empty(0)
            found = [of_state, *grads[2 : 1 + len(every[k])], *found]
        assert grad_output is not None
        return [grad_output, *found]

    return of_all


_by_one = _backward_by_layer(_SINGLE_BACKWARD)
_each_with_gradients = layer_by_layer(ops.Recurrence.apply)


class Stack(torch.autograd.Function):
    """`fastrnn::recurrence_stack` with gradients: input, its arguments up to `bias`, `layers`."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        batch_sizes: Tensor,
        resets: Tensor | None,
        cell: str,
        bias: bool,
        *layers: Tensor,
    ) -> tuple[Tensor, ...]:
        rows = (batch_sizes, resets)
        output = below_autograd(_STACK, input, layers, *rows, cell, bias, True)
        saved = [t for i, t in enumerate(output) if i % _RESULTS != 1]
        # Of a lower layer only the last states are results.
        ctx.mark_non_differentiable(*saved[:-3], saved[-1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, *rows, *layers, *saved)
        ctx.cell, ctx.bias, ctx.layers = cell, bias, len(layers)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        needs, nothing = ctx.needs_input_grad, (None,) * 4
        if all(g is None for g in grads):
            return (None, *nothing, *[None] * ctx.layers)
        input, batch_sizes, resets, *rest = ctx.saved_tensors
        layers, saved = rest[: ctx.layers], rest[ctx.layers :]
        options = (batch_sizes, resets)
        of_states = grads[1::_RESULTS]
        if second_order():
            run = partial(_one_by_one, options, ctx.cell, ctx.bias)
            found = again(run, (input, *layers), grads)
        else:
            given: list[Tensor] = []
            if any(g is not None for g in of_states):
                states = (layer[0] for layer in _by_layer(layers, ctx.bias))
                given = [
                    torch.zeros_like(s) if g is None else g
                    for g, s in zip(of_states, states, strict=True)
                ]
            _cuda.follow_tf32(input)
            each = 5 if ctx.bias else 3
            weights = (need for i, need in enumerate(needs[5:]) if i % each)
            wanted = (needs[0], any(needs[5::each]), any(weights))
            found = (_by_one if batched(grads) else _STACK_BACKWARD)(
                *(grads[-4], grads[-2], given, input, layers, *options, saved),
                *(ctx.cell, ctx.bias, *wanted),
            )
        needed = (needs[0], *needs[5:])
        of_input, *others = (g if need else None for g, need in zip(found, needed, strict=True))
        return (of_input, *nothing, *others)


def _one_by_one(rows: Any, cell: str, bias: bool, input: Tensor, *layers: Tensor) -> list[Tensor]:
    """What `Stack` gives, of operators that have gradients of every order."""
    return list(_each_with_gradients(input, layers, *rows, cell, bias))


def _differentiable(input: Tensor, layers: list[Tensor], *options: Any) -> list[Tensor]:
    """The operator by itself: gradients flow too."""
    if not need_gradients((input, *layers)):
        with torch._C._AutoDispatchBelowAutograd():
            return list(_STACK(input, layers, *options))
    *inputs, save = options
    found = applied(Stack, input, *inputs, *layers)
    return list(found if save else unsaved(found))


_library: Any = LIBRARY
fake_forward = layer_by_layer(ops._fake_forward)
fake_backward = _backward_by_layer(ops._fake_backward)
for _op, _run, _fake in (
    (_STACK, layer_by_layer(_SINGLE), fake_forward),
    (_STACK_BACKWARD, _by_one, fake_backward),
):
    _name = _op._schema.name
    _library.impl(_name.removeprefix("fastrnn::"), _run, "CompositeExplicitAutograd")
    torch.library.register_fake(_name, _fake)
_library.impl("recurrence_stack", _differentiable, "Autograd")


def refusal(module: Any) -> str | None:
    """Why a recurrent module's layers run one by one, whatever the device; None if they need not.

    Args:
        module: of `RNN`, `LSTM` or `GRU`'s options.
    """
    if getattr(module, "bidirectional", False):
        return "both directions of a layer come before the next"
    option = acting(module)
    return None if option is None else f"one launch has no {option}"


def acting(module: Any) -> str | None:
    """The option of a recurrent module that acts inside a step or else between layers, if any."""
    for name in _WITHOUT:
        if getattr(module, name, 0) and (name != "dropout" or module.training):
            return name
    return None


def at_once(cell: str, rows: Tensor, weights: Sequence[Sequence[Tensor]]) -> bool:
    """Whether one operator takes the layers of a module that has no `acting` option.

    Args:
        cell: a key of `CELLS`.
        rows: the first layer's input.
        weights: of each layer, as in `all_weights`.
    """
    if cell not in COMPILED or rows.numel() == 0 or lower_dtype(rows) is not None:
        return False
    if len(weights) == 1:
        # Programs have the operator of one layer for one layer, as its launch is.
        apart = rows.is_cuda or watched()
    else:
        # Transforms of torch.func have rules for the operator of one layer.
        apart = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
        # Below a layer that is held fixed nothing may want gradients at all.
        apart = apart or len({weight_hh.requires_grad for _, weight_hh, *_ in weights}) > 1
    return not apart and chosen(rows) == "native"


def run_stack(
    cell: str,
    rows: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Sequence[Tensor]],
    batch_sizes: Tensor | None = None,
    resets: Tensor | None = None,
    return_cells: bool = False,
) -> tuple[Tensor, Sequence[Tensor], Tensor | None]:
    """All layers: the last one's output, every layer's last states, the last one's cells.

    Arguments of `at_once`; each layer's states before the first step, and after the last, are
    [S, B, H].
    """
    padded, steps = batch_sizes is None, rows.shape[:2]
    if batch_sizes is None:
        batch_sizes = _arguments.padded_sizes(rows)
    args = (batch_sizes, None if resets is None else resets.flatten(), cell, len(weights[0]) > 2)
    input = rows.flatten(0, 1) if padded else rows
    layers = [t for state, each in zip(states, weights, strict=True) for t in (state, *each)]
    try:
        if by_functions() and need_gradients((input, *layers)):
            found = applied(Stack, input, *args, *layers)
        else:
            found = below_autograd(_STACK, input, layers, *args, return_cells)
    except RuntimeError:
        _arguments.layers(cell, rows, states[0].size(1), states[0].size(2), weights)
        raise
    output, _, cells, _ = found[-_RESULTS:]
    every = cells[0] if return_cells else None
    if padded:
        output = output.view(*steps, -1)
        every = None if every is None else every.view(*steps, -1)
    return output, found[1::_RESULTS], every
