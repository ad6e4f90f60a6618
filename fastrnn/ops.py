"""The operators: schema, plain-torch default, fake and autograd, once per operator.

libfastrnn.so registers faster implementations for CPU tensors; a device without one runs the
default. Autograd lives in Functions over the raw operators (not `register_autograd`), which keeps
`torch.func` transforms and `torch.compile(fullgraph=True)` working.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrnn import cells

_LIBRARY = torch.library.Library("fastrnn", "DEF")
_ARGUMENTS = (
    "Tensor input, Tensor state, Tensor? weight_ih, Tensor weight_hh, "
    "Tensor? bias_ih, Tensor? bias_hh, Tensor batch_sizes"
)
_LIBRARY.define(
    f"recurrence({_ARGUMENTS}, str cell, bool reverse, bool save)"
    " -> (Tensor output, Tensor state_n, Tensor cells, Tensor reserve)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "recurrence_backward(Tensor? grad_output, Tensor? grad_state_n, Tensor? grad_cells, "
    f"{_ARGUMENTS}, Tensor output, Tensor cells, Tensor reserve, "
    "str cell, bool reverse, bool input_grad, bool weight_grad)"
    " -> (Tensor grad_input, Tensor grad_state, Tensor grad_weight_ih, Tensor grad_weight_hh,"
    " Tensor grad_bias_ih, Tensor grad_bias_hh)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define("cpu_instruction_set() -> str")

Optional = Tensor | None


def reference(
    input: Tensor,
    state: Tensor,
    weight_ih: Optional,
    weight_hh: Tensor,
    bias_ih: Optional,
    bias_hh: Optional,
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


def _default_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *inputs, save = args
    inputs = [a.detach() if isinstance(a, Tensor) else a for a in inputs]
    output, state_n, cells_, reserve = reference(*inputs)
    if not save:
        cells_, reserve = cells_[:, :0].clone(), reserve[:0].clone()
    return output, state_n, cells_, reserve


def _default_backward(*args: Any) -> tuple[Tensor, ...]:
    grads, inputs = args[:3], args[3:9]
    batch_sizes, (cell, reverse, input_grad, weight_grad) = args[9], args[13:]
    # Below a dispatch mode autograd is switched off in this thread; the gradient needs it.
    autograd_on = torch._C._SetExcludeDispatchKeyGuard(
        torch._C.DispatchKey.AutogradFunctionality, False
    )
    with autograd_on, torch.enable_grad():
        leaves = [None if a is None else a.detach().requires_grad_() for a in inputs]
        outputs = reference(*leaves, batch_sizes, cell, reverse)[:3]  # type: ignore[arg-type]
        pairs = [(o, g.detach()) for o, g in zip(outputs, grads, strict=True) if g is not None]
        wanted = [input_grad, True, *[weight_grad] * 4]
        targets = [a for a, w in zip(leaves, wanted, strict=True) if w and a is not None]
        found = iter(
            torch.autograd.grad(
                [o for o, _ in pairs], targets, [g for _, g in pairs], materialize_grads=True
            )
        )
    return tuple(
        args[3].new_empty(0) if a is None or not w else next(found)
        for a, w in zip(leaves, wanted, strict=True)
    )


_LIBRARY.impl("recurrence", _default_forward, "CompositeExplicitAutograd")
_LIBRARY.impl("recurrence_backward", _default_backward, "CompositeExplicitAutograd")


@torch.library.register_fake("fastrnn::recurrence")
def _fake_forward(
    input: Tensor,
    state: Tensor,
    weight_ih: Optional,
    weight_hh: Tensor,
    bias_ih: Optional,
    bias_hh: Optional,
    batch_sizes: Tensor,
    cell: str,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    c = cells.CELLS[cell]
    hidden, rows = state.size(2), input.size(0)
    saved = rows if save else 0
    return (
        input.new_empty(rows, hidden),
        torch.empty_like(state, memory_format=torch.contiguous_format),
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


class Recurrence(torch.autograd.Function):
    """`fastrnn::recurrence` with gradients; takes the operator's arguments up to `reverse`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(torch.ops.fastrnn.recurrence.default(*args, True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.cell, ctx.reverse = inputs
        out, _, cells_, reserve = output
        ctx.mark_non_differentiable(reserve)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, out, cells_, reserve)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> tuple[Any, ...]:
        if all(g is None for g in grads[:3]):
            return (None,) * 9
        needs = ctx.needs_input_grad
        args = (*grads[:3], *ctx.saved_tensors, ctx.cell, ctx.reverse, needs[0], any(needs[2:6]))
        # Dynamo refuses a Function inside a Function's backward, and needs no second order.
        twice = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        found = RecurrenceBackward.apply(*args) if twice else RecurrenceBackward.forward(*args)
        return (
            *(g if need else None for g, need in zip(found, needs[:6], strict=True)),
            *(None,) * 3,
        )


class RecurrenceBackward(torch.autograd.Function):
    """`fastrnn::recurrence_backward`, itself differentiable through the reference."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(torch.ops.fastrnn.recurrence_backward.default(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:10])
        ctx.cell, ctx.reverse, ctx.input_grad, ctx.weight_grad = inputs[13:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> tuple[Any, ...]:
        *differentiable, batch_sizes = ctx.saved_tensors
        present = [i for i, a in enumerate(differentiable) if a is not None]
        wanted = [g for g in grads if g is not None]

        def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
            """The first gradients that a second-order gradient flows back from."""
            full: list[Optional] = [None] * 9
            for i, a in zip(present, tensors, strict=True):
                full[i] = a
            inputs = [i for i in range(3, 9) if full[i] is not None]

            def outputs(*primals: Tensor) -> tuple[Tensor, ...]:
                filled = list(full)
                for i, a in zip(inputs, primals, strict=True):
                    filled[i] = a
                results = reference(*filled[3:], batch_sizes, ctx.cell, ctx.reverse)  # type: ignore[arg-type]
                return tuple(r for r, g in zip(results[:3], full[:3], strict=True) if g is not None)

            _, pullback = torch.func.vjp(outputs, *(full[i] for i in inputs))
            found = pullback(tuple(g for g in full[:3] if g is not None))
            by_input = dict(zip(inputs, found, strict=True))
            return tuple(by_input[i + 3] for i, g in enumerate(grads) if g is not None)

        if not wanted:
            return (None,) * 17
        _, pullback = torch.func.vjp(gradients, *(differentiable[i] for i in present))
        found = dict(zip(present, pullback(tuple(wanted)), strict=True))
        return (*(found.get(i) for i in range(9)), *(None,) * 8)


# The compiled implementations need the schemas above.
from fastrnn import _library  # noqa: E402, F401
