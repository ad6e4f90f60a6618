"""How the operators are called: whether gradients are wanted, and who makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch.autograd import forward_ad

from fastrnn import _cuda


def need_gradients(args: Iterable[Any]) -> bool:
    """Whether gradients are wanted of an operator's arguments."""
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)


def by_functions() -> bool:
    """Whether gradients flow through Functions, rather than through the operators by themselves.

    Programs of `torch.export` and `torch.jit.trace` hold the operators; a Function would end the
    gradients in the one (with `strict=True`) and is refused by the other.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return False
    if torch._C._get_tracing_state() is not None:
        return False
    return torch.compiler.is_compiling() or not _functionalized()


def unguarded() -> bool:
    """Whether operators are called as they are, not below autograd.

    Dynamo refuses the guard, and has no need of it; nor has `torch.func.functionalize`.
    """
    return torch.compiler.is_compiling() or _functionalized()


def _functionalized() -> bool:
    """Whether inside `torch.func.functionalize`, which takes operators and refuses Functions."""
    levels = torch._C._functorch.get_interpreter_stack()
    if levels is None:
        return False
    kinds = {level.key() for level in levels}
    if TransformType.Functionalize not in kinds:
        return False
    if torch.is_grad_enabled() and not kinds.isdisjoint((TransformType.Grad, TransformType.Jvp)):
        raise RuntimeError(
            "torch.func.functionalize of the compiled kernels must be without torch.func's "
            "gradients, got both: use torch.compile, or fastrnn.use_backend('reference')"
        )
    return True


def watched() -> bool:
    """Whether torch traces or transforms what is done: it knows the general operators best."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return torch._C._get_tracing_state() is not None


def second_order() -> bool:
    """Whether a backward pass is to be a Function, too: its gradients may have some of their own.

    Dynamo refuses a Function inside a Function's backward, and needs no second order. A tangent
    that comes with the gradients needs the Function, which refuses it.
    """
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def below_autograd(op: Any, *args: Any) -> tuple[Tensor, ...]:
    """An operator without a look at whether gradients are wanted."""
    if unguarded():
        return tuple(op(*args))
    _cuda.follow_tf32(args[0])
    with torch._C._AutoDispatchBelowAutograd():
        return tuple(op(*args))


def applied(function: Any, *args: Any) -> Any:
    """`function.apply(*args)` of a Function whose `forward` has no defaults.

    torch's looks at the signature of `forward` in every call, to find defaults: 20 us.
    """
    if torch.compiler.is_compiling():
        # Dynamo cannot follow `setup_context` where nothing needs a gradient.
        needed = any(isinstance(a, Tensor) and a.requires_grad for a in args)
        return function.apply(*args) if needed else function.forward(*args)
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*args)


def batched(grads: Sequence[Tensor | None]) -> bool:
    """Whether they stand for many (`is_grads_batched`): there is no rule for operators of lists."""
    if torch.compiler.is_compiling():
        return False
    return any(g is not None and torch._C._functorch.is_legacy_batchedtensor(g) for g in grads)


def again(
    run: Callable[..., Sequence[Tensor]],
    tensors: Sequence[Tensor],
    grads: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    """Gradients of `run`'s results, by running it once more; they may have some of their own."""
    create_graph = second_order()
    with torch.enable_grad():
        # Each by itself: of a tensor that another is, or is made of, the rest counts elsewhere.
        tensors = [t.view_as(t) if t.requires_grad else t for t in tensors]
        results = run(*tensors)
    given = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None]
    leaves = [t for t in tensors if t.requires_grad]
    found = torch.autograd.grad(
        *([r for r, _ in given], leaves, [g for _, g in given]),
        create_graph=create_graph,
        allow_unused=True,
    )
    by_leaf = iter(found)
    return [next(by_leaf) if t.requires_grad else None for t in tensors]


def unsaved(results: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The results of recurrences, four of each, with cells and reserves of no rows."""
    each = enumerate(results)
    return tuple(t if i % 4 < 2 else t[:, :0] if i % 4 == 2 else t[:0] for i, t in each)
