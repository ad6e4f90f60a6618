"""The operators: plain-torch default, fake and autograd, once per operator.

libfastrnn.so registers faster implementations for CPU tensors; a device without one runs the
default. Autograd lives in Functions over the raw operators (not `register_autograd`), which keeps
`torch.func` transforms and `torch.compile(fullgraph=True)` working.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from fastrnn import cells
from fastrnn._library import LIBRARY

Named = dict[str, Tensor]
_INPUTS = ("input", "state", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
_OUTPUTS = ("output", "state_n", "cells")


def reference(
    input: Tensor,
    state: Tensor,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    batch_sizes: Tensor,
    cell: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The recurrence in differentiable torch, with the operator's arguments and results."""
    output, state_n, cells_, reserve = cells.recurrence(
        cells.CELLS[cell],
        input if weight_ih is None else F.linear(input, weight_ih, bias_ih),
        state.unbind(),
        weight_hh,
        bias_hh,
        batch_sizes.tolist(),
        reverse,
    )
    return output, torch.stack(state_n), cells_, reserve


def _outputs(inputs: Named, *options: Any) -> Named:
    """The reference on inputs by name; options: batch_sizes, cell, reverse."""
    args: Any = [inputs.get(name) for name in _INPUTS]
    return dict(zip(_OUTPUTS, reference(*args, *options), strict=False))


def _named(names: tuple[str, ...], tensors: Any) -> Named:
    return {name: t for name, t in zip(names, tensors, strict=True) if t is not None}


def _default_forward(*args: Any) -> tuple[Tensor, ...]:
    *inputs, save = args
    detached: Any = [a.detach() if isinstance(a, Tensor) else a for a in inputs]
    output, state_n, cells_, reserve = reference(*detached)
    if not save:
        cells_, reserve = cells_[:, :0].clone(), reserve[:0].clone()
    return output, state_n, cells_, reserve


def _default_backward(*args: Any) -> tuple[Tensor, ...]:
    grads, inputs = _named(_OUTPUTS, args[:3]), _named(_INPUTS, args[3:9])
    batch_sizes, (cell, reverse, input_grad, weight_grad) = args[9], args[13:]
    # Below a dispatch mode autograd is switched off in this thread; the gradient needs it.
    autograd_on = torch._C._SetExcludeDispatchKeyGuard(
        torch._C.DispatchKey.AutogradFunctionality, False
    )
    with autograd_on, torch.enable_grad():
        leaves = {name: a.detach().requires_grad_() for name, a in inputs.items()}
        outputs = _outputs(leaves, batch_sizes, cell, reverse)
        if outputs["cells"].numel() == 0:  # a cell of one state
            grads.pop("cells", None)
        found = torch.autograd.grad(
            [outputs[name] for name in grads],
            list(leaves.values()),
            [g.detach() for g in grads.values()],
            materialize_grads=True,
        )
    by_name = dict(zip(leaves, found, strict=True))
    wanted = dict.fromkeys(_INPUTS, weight_grad) | {"input": input_grad, "state": True}
    none = args[3].new_empty(0)
    return tuple(by_name.get(name, none) if wanted[name] else none.clone() for name in _INPUTS)


LIBRARY.impl("recurrence", _default_forward, "CompositeExplicitAutograd")
LIBRARY.impl("recurrence_backward", _default_backward, "CompositeExplicitAutograd")


@torch.library.register_fake("fastrnn::recurrence")
def _fake_forward(*args: Any) -> tuple[Tensor, ...]:
    input, state, (cell, _, save) = args[0], args[1], args[7:]
    c = cells.CELLS[cell]
    hidden, rows = state.size(2), input.size(0)
    saved = rows if save else 0
    return (
        input.new_empty(rows, hidden),
        input.new_empty(state.shape),
        input.new_empty(c.states - 1, saved, hidden),
        input.new_empty(saved, c.reserve * hidden),
    )


@torch.library.register_fake("fastrnn::recurrence_backward")
def _fake_backward(*args: Any) -> tuple[Tensor, ...]:
    inputs, (input_grad, weight_grad) = args[3:9], args[15:]
    wanted = (input_grad, True, *[weight_grad] * 4)
    return tuple(
        args[3].new_empty(a.shape if w and a is not None else (0,))
        for a, w in zip(inputs, wanted, strict=True)
    )


def below_autograd(*args: Any) -> tuple[Tensor, ...]:
    """`fastrnn::recurrence` without a look at whether gradients are wanted."""
    if torch.compiler.is_compiling():  # Dynamo refuses the guard, and has no need of it
        return tuple(torch.ops.fastrnn.recurrence.default(*args))
    with torch._C._AutoDispatchBelowAutograd():
        return tuple(torch.ops.fastrnn.recurrence.default(*args))


class Recurrence(torch.autograd.Function):
    """`fastrnn::recurrence` with gradients; takes the operator's arguments up to `reverse`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return below_autograd(*args, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.cell, ctx.reverse = inputs
        out, _, cells_, reserve = output
        ctx.mark_non_differentiable(reserve)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, out, cells_, reserve)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if all(g is None for g in grads[:3]):
            return (None,) * 9
        needs = ctx.needs_input_grad
        args = (*grads[:3], *ctx.saved_tensors, ctx.cell, ctx.reverse, needs[0], any(needs[2:6]))
        # Dynamo refuses a Function inside a Function's backward, and needs no second order.
        # A tangent that comes with the gradients needs the Function too, which refuses it.
        twice = torch.is_grad_enabled() or forward_ad._current_level >= 0
        twice = twice and not torch.compiler.is_compiling()
        found = RecurrenceBackward.apply(*args) if twice else RecurrenceBackward.forward(*args)
        return (
            *(g if need else None for g, need in zip(found, needs[:6], strict=True)),
            *(None,) * 3,
        )


class RecurrenceBackward(torch.autograd.Function):
    """`fastrnn::recurrence_backward`, itself differentiable through the reference."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return tuple(torch.ops.fastrnn.recurrence_backward.default(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:10])
        ctx.cell, ctx.reverse = inputs[13:15]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        *tensors, batch_sizes = ctx.saved_tensors
        second = _named(_INPUTS, grads)
        if not second:
            return (None,) * 17

        def gradients(grads: Named, inputs: Named) -> Named:
            """The first gradients that `second` flows back from."""

            def outputs(inputs: Named) -> Named:
                found = _outputs(inputs, batch_sizes, ctx.cell, ctx.reverse)
                return {name: found[name] for name in grads}

            pullback: Any = torch.func.vjp(outputs, inputs)[1]
            (found,) = pullback(grads)
            return {name: found[name] for name in second}

        firsts = _named(_OUTPUTS, tensors[:3]), _named(_INPUTS, tensors[3:])
        pullback: Any = torch.func.vjp(gradients, *firsts)[1]
        by_output, by_input = pullback(second)
        return (*map(by_output.get, _OUTPUTS), *map(by_input.get, _INPUTS), *(None,) * 8)


def _differentiable(*args: Any) -> tuple[Tensor, ...]:
    """The operator by itself, as exported and traced programs call it: gradients flow too."""
    *inputs, save = args
    tensors = (a for a in inputs if isinstance(a, Tensor))
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(torch.ops.fastrnn.recurrence.default(*args))
    output, state_n, cells_, reserve = Recurrence.apply(*inputs)
    if not save:
        cells_, reserve = cells_[:, :0], reserve[:0]
    return output, state_n, cells_, reserve


LIBRARY.impl("recurrence", _differentiable, "Autograd")
