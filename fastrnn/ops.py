"""The operators: plain-torch default, fake and autograd, once per operator.

libfastrnn.so registers faster implementations for CPU tensors; a device without one runs the
default. Autograd lives in Functions over the raw operators (not `register_autograd`), which keeps
`torch.func` transforms and `torch.compile(fullgraph=True)` working.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastrnn import _cuda, batching, cells
from fastrnn._calls import below_autograd, need_gradients, second_order, unsaved
from fastrnn._library import LIBRARY
from fastrnn.regularisers import Extras, LayerNorm

Named = dict[str, Tensor]
_INPUTS = (
    *("input", "state", "weight_ih", "weight_hh", "bias_ih", "bias_hh"),
    *("weight_hr", "gains"),
)
_TENSORS = len(_INPUTS)
_ROWS = _TENSORS + 5  # where batch_sizes, resets, seed, sequences and zoneout end
_OUTPUTS = ("output", "state_n", "cells")


def reference(
    input: Tensor,
    state: Tensor,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    gains: Tensor | None,
    batch_sizes: Tensor,
    resets: Tensor | None,
    seed: Tensor | None,
    sequences: Tensor | None,
    zoneout: list[float],
    cell: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The recurrence in differentiable torch, with the operator's arguments and results."""
    c, states = cells.CELLS[cell], state.unbind()
    if weight_hr is not None:
        states = cells.narrowed(state, weight_hr.size(0))
    norm = None if gains is None else LayerNorm.split(gains, c.gates, c.states)
    x_proj, product = cells.projected(input, weight_ih, bias_ih, norm)
    output, state_n, cells_, reserve = cells.recurrence(
        c,
        x_proj,
        states,
        weight_hh,
        bias_hh,
        batch_sizes.tolist(),
        reverse,
        weight_hr,
        Extras(resets, tuple(zoneout) or None, seed, sequences, norm),
    )
    if norm is not None:
        reserve = torch.cat((reserve, product), dim=1)
    stacked = torch.stack(state_n) if weight_hr is None else cells.widened(state_n)
    return output, stacked, cells_, reserve


def _outputs(inputs: Named, *options: Any) -> Named:
    """The reference on inputs by name; options: its arguments from batch_sizes on."""
    args: Any = [inputs.get(name) for name in _INPUTS]
    return dict(zip(_OUTPUTS, reference(*args, *options), strict=False))


def _named(names: tuple[str, ...], tensors: Any) -> Named:
    return {name: t for name, t in zip(names, tensors, strict=True) if t is not None}


def _split(args: tuple[Any, ...]) -> tuple[Named, tuple[Any, ...]]:
    """The inputs by name, and what follows up to zoneout, of the operator's arguments."""
    return _named(_INPUTS, args[:_TENSORS]), args[_TENSORS:_ROWS]


def _default_forward(*args: Any) -> tuple[Tensor, ...]:
    *inputs, save = args
    detached: Any = [a.detach() if isinstance(a, Tensor) else a for a in inputs]
    output, state_n, cells_, reserve = reference(*detached)
    if not save:
        cells_, reserve = cells_[:, :0].clone(), reserve[:0].clone()
    return output, state_n, cells_, reserve


def _default_backward(*args: Any) -> tuple[Tensor, ...]:
    grads, (inputs, rows) = _named(_OUTPUTS, args[:3]), _split(args[3:])
    cell, reverse, input_grad, weight_grad = args[-4:]
    # Below a dispatch mode autograd is switched off in this thread; the gradient needs it.
    autograd_on = torch._C._SetExcludeDispatchKeyGuard(
        torch._C.DispatchKey.AutogradFunctionality, False
    )
    with autograd_on, torch.enable_grad():
        leaves = {name: a.detach().requires_grad_() for name, a in inputs.items()}
        outputs = _outputs(leaves, *rows, cell, reverse)
        if outputs["cells"].numel() == 0:  # a cell of one state
            grads.pop("cells", None)
        grads_of = torch.autograd.grad(
            [outputs[name] for name in grads],
            list(leaves.values()),
            [g.detach() for g in grads.values()],
            materialize_grads=True,
        )
    by_name = dict(zip(leaves, grads_of, strict=True))
    wanted = dict.fromkeys(_INPUTS, weight_grad) | {"input": input_grad, "state": True}
    found = (by_name.get(name) if wanted[name] else None for name in _INPUTS)
    return tuple(args[3].new_empty(0) if g is None else g for g in found)


def _fake_forward(*args: Any) -> tuple[Tensor, ...]:
    input, state, weight_hr, gains = args[0], args[1], *args[_TENSORS - 2 : _TENSORS]
    zoneout, cell, _, save = args[_ROWS - 1 :]
    c = cells.CELLS[cell]
    slots = c.reserve
    if zoneout or weight_hr is not None:
        slots += c.states
    if gains is not None:
        slots += 2 * c.gates
    hidden, rows = state.size(2), input.size(0)
    saved = rows if save else 0
    return (
        input.new_empty(rows, hidden if weight_hr is None else weight_hr.size(0)),
        input.new_empty(state.shape),
        input.new_empty(c.states - 1, saved, hidden),
        input.new_empty(saved, slots * hidden),
    )


def _fake_backward(*args: Any) -> tuple[Tensor, ...]:
    inputs, (input_grad, weight_grad) = args[3 : 3 + _TENSORS], args[-2:]
    wanted = (input_grad, True, *[weight_grad] * (_TENSORS - 2))
    return tuple(
        args[3].new_empty(a.shape if w and a is not None else (0,))
        for a, w in zip(inputs, wanted, strict=True)
    )


class Recurrence(torch.autograd.Function):
    """`fastrnn::recurrence` with gradients; takes the operator's arguments up to `reverse`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return below_autograd(torch.ops.fastrnn.recurrence.default, *args, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.zoneout, ctx.cell, ctx.reverse = inputs
        out, _, cells_, reserve = output
        ctx.mark_non_differentiable(reserve)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, out, cells_, reserve)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return gradients(RecurrenceBackward, ctx, grads)


def gradients(backward: Any, ctx: Any, grads: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
    """Of a `Recurrence`'s inputs, by the Function around its backward operator."""
    if all(g is None for g in grads[:3]):
        return (None,) * (_ROWS + 2)
    needs = ctx.needs_input_grad
    *tensors, out, cells_, reserve = ctx.saved_tensors
    wanted = needs[0], any(needs[2:_TENSORS])
    args = (
        *(*grads[:3], *tensors, ctx.zoneout),
        *(out, cells_, reserve, ctx.cell, ctx.reverse, *wanted),
    )
    found = backward.apply(*args) if second_order() else backward.forward(*args)
    return (
        *(g if need else None for g, need in zip(found, needs[:_TENSORS], strict=True)),
        *(None,) * (_ROWS + 2 - _TENSORS),
    )


class RecurrenceBackward(torch.autograd.Function):
    """`fastrnn::recurrence_backward`, itself differentiable through the reference."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        _cuda.follow_tf32(args[3])
        return tuple(torch.ops.fastrnn.recurrence_backward.default(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.zoneout = inputs[: 3 + _ROWS]
        ctx.save_for_backward(*tensors)
        ctx.options = inputs[-4:-2]  # cell, reverse
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        given, (inputs, rows) = ctx.saved_tensors[:3], _split(ctx.saved_tensors[3:])
        second = _named(_INPUTS, grads)
        if not second:
            return (None,) * (_ROWS + 10)

        def gradients(grads: Named, inputs: Named) -> Named:
            """The first gradients that `second` flows back from."""

            def outputs(inputs: Named) -> Named:
                found = _outputs(inputs, *rows, ctx.zoneout, *ctx.options)
                return {name: found[name] for name in grads}

            pullback: Any = torch.func.vjp(outputs, inputs)[1]
            (found,) = pullback(grads)
            return {name: found[name] for name in second}

        pullback: Any = torch.func.vjp(gradients, _named(_OUTPUTS, given), inputs)[1]
        by_output, by_input = pullback(second)
        return (*map(by_output.get, _OUTPUTS), *map(by_input.get, _INPUTS), *(None,) * 12)


def register(prefix: str, function: Any, forward: Any, backward: Any) -> None:
    """Register `fastrnn::{prefix}recurrence` and its backward, which have been defined.

    Args:
        prefix: of the operators' names.
        function: the autograd Function around them.
        forward: what runs where a device has no kernel of its own.
        backward: the same of the backward operator.
    """
    names = [f"{prefix}recurrence", f"{prefix}recurrence_backward"]
    fakes, batched = (_fake_forward, _fake_backward), (batching.forward, batching.backward)
    for name, run, fake, rule in zip(names, (forward, backward), fakes, batched, strict=True):
        LIBRARY.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastrnn::{name}", fake)
        op = getattr(torch.ops.fastrnn, name).default
        torch.library.register_vmap(f"fastrnn::{name}", partial(rule, op))
    forward_op = getattr(torch.ops.fastrnn, names[0]).default

    def differentiable(*args: Any) -> tuple[Tensor, ...]:
        """The operator by itself, as exported and traced programs call it: gradients flow too."""
        if not need_gradients(args):
            with torch._C._AutoDispatchBelowAutograd():
                return tuple(forward_op(*args))
        *inputs, save = args
        found = function.apply(*inputs)
        return tuple(found) if save else unsaved(found)

    LIBRARY.impl(names[0], differentiable, "Autograd")


register("", Recurrence, _default_forward, _default_backward)
