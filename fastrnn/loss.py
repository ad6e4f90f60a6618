"""Linear layer and cross entropy as one operator that never holds the logits whole."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from fastrnn._arguments import are_tensors, number
from fastrnn._autocast import lower_dtype
from fastrnn._calls import applied, below_autograd, by_functions, need_gradients
from fastrnn._library import LIBRARY
from fastrnn.backends import chosen
from fastrnn.batching import Dims, one_by_one

_OP = torch.ops.fastrnn.linear_cross_entropy.default


def reference(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    mean: bool,
) -> Tensor:
    """The loss in differentiable torch, [] whether mean or sum."""
    return F.cross_entropy(
        F.linear(hidden, weight, bias),
        target,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="mean" if mean else "sum",
    )


def _in_torch(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *options: Any
) -> tuple[Tensor, ...]:
    """The operator in torch, its losses differentiable."""
    ignore_index, smoothing, mean, bfloat16, gradients = options
    if bfloat16:
        hidden, weight = hidden.bfloat16().float(), weight.bfloat16().float()
    logits = F.linear(hidden, weight, bias)
    losses = F.cross_entropy(
        logits, target, ignore_index=ignore_index, label_smoothing=smoothing, reduction="none"
    )
    counted = target != ignore_index
    scale = counted.to(losses.dtype)
    if mean:
        scale = scale / counted.sum()
    losses = losses * scale
    empty = hidden.new_empty(0)
    if not gradients:
        return losses, empty, empty.clone(), empty.clone()
    classes = logits.size(1)
    onehot = F.one_hot(target.where(counted, 0), classes).to(logits.dtype)
    grad = logits.detach().softmax(1) - (1 - smoothing) * onehot - smoothing / classes
    grad = (grad * scale.unsqueeze(1)).where(counted.unsqueeze(1), 0)  # a mean of none is 0 / 0
    grad_bias = empty.clone() if bias is None else grad.sum(0)
    return losses, grad @ weight.detach(), grad.T @ hidden.detach(), grad_bias


def _default(*args: Any) -> tuple[Tensor, ...]:
    return _in_torch(*(a.detach() if isinstance(a, Tensor) else a for a in args))


def _differentiable(*args: Any) -> tuple[Tensor, ...]:
    """The operator by itself, as exported and traced programs call it: gradients flow too."""
    if need_gradients(args):
        return _in_torch(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return tuple(_OP(*args))


LIBRARY.impl("linear_cross_entropy", _default, "CompositeExplicitAutograd")
LIBRARY.impl("linear_cross_entropy", _differentiable, "Autograd")


@torch.library.register_fake("fastrnn::linear_cross_entropy")
def _fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *options: Any
) -> tuple[Tensor, ...]:
    gradients = options[-1]
    return (
        hidden.new_empty(target.shape),
        hidden.new_empty(hidden.shape if gradients else (0,)),
        hidden.new_empty(weight.shape if gradients else (0,)),
        hidden.new_empty(bias.shape if gradients and bias is not None else (0,)),
    )


@torch.library.register_vmap("fastrnn::linear_cross_entropy")
def _batched(info: Any, dims: Dims, *args: Any) -> tuple[Any, Any]:
    return one_by_one(_OP, info.batch_size, dims, args)


def _total(losses: Tensor, mean: bool) -> Tensor:
    """The sum of scaled losses [M]; a mean over no rows is NaN, as in torch."""
    return losses.mean() if mean and losses.size(0) == 0 else losses.sum()


# Private to torch. A torch without one of them gets a copy, which costs time and memory.
_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: "unknown")
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def _scaled(saved: list[Tensor], factor: Tensor, hooked: bool) -> tuple[Tensor, ...]:
    """Saved gradients times what comes in, where nobody reads them again in their own memory.

    Args:
        saved: of any shape.
        factor: [].
        hooked: whether others may hold what is saved.

    Returns:
        The caller's own.
    """
    # Neither traced, nor with a tangent, nor one of the batches that stand for many under vmap.
    plain = forward_ad._current_level < 0 and all(
        type(t) is Tensor and torch._C._has_storage(t) for t in (factor, *saved)
    )
    if hooked or not plain or torch._C._len_torch_dispatch_stack() or _graph_is_kept():
        return tuple(g * factor for g in saved)
    if float(factor) != 1:
        for g in saved:
            g.mul_(factor)
    return tuple(saved)


class LinearCrossEntropy(torch.autograd.Function):
    """`fastrnn::linear_cross_entropy`, whose gradients are made with the loss."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        losses, *grads = below_autograd(_OP, *args, True)
        return _total(losses, args[6]), *grads

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:4], *output[1:])
        ctx.options = inputs[4:7]
        # Whoever packs what is saved may keep it.
        ctx.hooked = torch.compiler.is_compiling() or _hooks(False) is not None

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 8
        hidden, weight, bias, target, *grads = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # A gradient of this gradient is wanted: made by torch, from the inputs.
            inputs = (hidden, weight) if bias is None else (hidden, weight, bias)

            def loss(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
                return reference(hidden, weight, bias, target, *ctx.options)

            pullback: Any = torch.func.vjp(loss, *inputs)[1]
            found = pullback(grad)
        else:
            wanted = grads[: 2 if bias is None else 3]
            if torch.compiler.is_compiling():
                found = tuple(g * grad for g in wanted)
            else:
                found = _scaled(wanted, grad, ctx.hooked)
        return (*found, *(None,) * (8 - len(found)))


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy of `hidden @ weight.T + bias`, computed in chunks of rows.

    Where gradients are on they are computed together with the loss, so that backward only scales
    them. On the CPU, for tensors of bfloat16 and under autocast to it, products are of bfloat16,
    and everything else is float32.

    Args:
        hidden: [M, K] (or [..., K], with `target` [...]); float32, float64 or bfloat16 on the
            native backend.
        weight: [V, K].
        bias: [V] or None.
        target: int64 [M] (or [...]), classes in [0, V) or `ignore_index`.
        ignore_index: target whose row counts nothing; default -100.
        label_smoothing: share of the target spread over all classes, in [0, 1]; default 0.
        reduction: "mean" (default; over rows that count) or "sum".

    Returns:
        The loss in nats, [].

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument's shape, dtype or device does not fit, or an option's value.
        RuntimeError, IndexError: a class is out of range (found by the kernels, or by torch).

    Source: Szegedy et al. 2016, section 7 (label smoothing).
    """
    needed = {"hidden": hidden, "weight": weight, "target": target}
    are_tensors("linear_cross_entropy", needed, {"bias": bias})
    number("linear_cross_entropy: label_smoothing", label_smoothing)
    if not isinstance(ignore_index, Integral):  # numpy's, too
        kind = type(ignore_index).__name__
        raise TypeError(f"linear_cross_entropy: ignore_index must be an int, got {kind}")
    lower = lower_dtype(hidden)
    rough = torch.bfloat16 in (hidden.dtype, lower)
    if lower is not None:  # as in torch any mix goes in, and the loss is float32
        hidden, weight = _widened(hidden), _widened(weight)
        bias = None if bias is None else _widened(bias)
    _check(hidden, weight, bias, target, label_smoothing, reduction)
    rows = hidden.flatten(0, -2) if hidden.dim() > 1 else hidden.unsqueeze(0)
    options = (ignore_index, label_smoothing, reduction == "mean")
    args = (rows, weight, bias, target.flatten(), *options)
    lacks = None
    if hidden.is_cuda:  # where torch's own product, softmax and loss are the fast ones
        lacks = "the loss has no CUDA kernels"
    elif hidden.size(-1) == 0:
        lacks = "the compiled loss needs at least one feature"
    if chosen(hidden, lacks) != "native":
        return reference(*args)
    tensors = (t.float() if rough and t is not None else t for t in args[:3])
    return _native(*tensors, *args[3:], rough).to(hidden.dtype)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _native(*args: Any) -> Tensor:
    wanted = any(t is not None and t.requires_grad for t in args[:3])
    # A batch under vmap does not say whether somebody outside wants gradients of it.
    if not torch.compiler.is_compiling():
        wanted = wanted or torch._C._are_functorch_transforms_active()
    if by_functions() and wanted:
        loss: Tensor = applied(LinearCrossEntropy, *args)[0]
        return loss
    return _total(below_autograd(_OP, *args, False)[0], args[6])


def _wrong(name: str, expected: str, got: object) -> ValueError:
    return ValueError(f"linear_cross_entropy: {name} must be {expected}, got {got}")


def _check(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    label_smoothing: float,
    reduction: str,
) -> None:
    shape, dtype, device = hidden.shape, hidden.dtype, hidden.device
    if len(shape) == 0:
        raise _wrong("hidden", "[..., K]", "[]")
    if not hidden.is_floating_point():
        raise _wrong("hidden", "of a floating dtype", dtype)
    if weight.dim() != 2 or weight.size(1) != shape[-1]:
        raise _wrong("weight", f"[V, K] = [V, {shape[-1]}]", list(weight.shape))
    classes = weight.size(0)
    if bias is not None and bias.shape != (classes,):
        raise _wrong("bias", f"[V] = [{classes}]", list(bias.shape))
    if target.shape != shape[:-1]:
        expected = f"{list(shape[:-1])}, one for each row of hidden {list(shape)}"
        raise _wrong("target", expected, list(target.shape))
    if target.dtype != torch.int64:
        raise _wrong("target", "int64", target.dtype)
    for name, tensor in (("weight", weight), ("bias", bias), ("target", target)):
        if tensor is None:
            continue
        if tensor.device != device:
            raise _wrong(name, f"on {device}", tensor.device)
        if tensor.dtype != dtype and name != "target":
            raise _wrong(name, f"{dtype}", tensor.dtype)
    if not 0 <= label_smoothing <= 1:
        raise _wrong("label_smoothing", "in [0, 1]", label_smoothing)
    if reduction not in ("mean", "sum"):
        raise _wrong("reduction", "'mean' or 'sum'", repr(reduction))
