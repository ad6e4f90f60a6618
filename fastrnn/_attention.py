"""The operator `fastrnn::masked_attention`: plain-torch default, fake and autograd."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastrnn import _attention_batching
from fastrnn._calls import below_autograd, need_gradients, second_order
from fastrnn._library import LIBRARY
from fastrnn.regularisers import random_words

_LARGEST_WORD = 2**32 - 1


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    seed: Tensor | None,
    is_causal: bool,
    dropout_p: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """`fastrnn::masked_attention` in differentiable torch: what every kernel computes.

    Args:
        query: [B, heads, Lq, E].
        key: [B, heads, Lk, E].
        value: [B, heads, Lk, D].
        mask: bool (True: attend) or of the query's dtype (added to the scores), each axis of
            [B, heads, Lq, Lk] or 1; or None.
        seed: int64 with one value, what dropout draws from; None without dropout.
        is_causal: query i attends to keys j <= i only, whatever the lengths.
        dropout_p: probability of a weight to be dropped, below 1. Weight (b, h, i, j) is dropped
            where word j % 4 of Philox-4x32-10 at the counter (j // 4, b * heads + h, i, 0) under
            the key (low half of the seed, high half) is below round(dropout_p * 2**32); the others
            are divided by 1 - dropout_p.
        scale: of the products of queries and keys.

    Returns:
        output [B, heads, Lq, D] and logsumexp [B, heads, Lq], of the scores after the masks. A row
        that may attend to nothing has an output of 0, a logsumexp of +inf (so that
        exp(score - logsumexp) is 0) and gradients of 0. The backward operator takes both, and with
        W = exp(scores - logsumexp), kept K = 0 or 1 / (1 - dropout_p) and dO it returns
        dV = (K W)^T dO, dQ = scale dS Q', dK = scale dS^T Q and dmask = dS summed over the axes the
        mask is broadcast along, where dS = W (K (dO V^T) - rowsum(dO output)) and Q' is the key.

    Source: Vaswani et al. 2017, eq. 1; Dao 2023, "FlashAttention-2", algorithms 1 and 2.
    """
    scores = query @ key.mT * scale
    if mask is not None and mask.is_floating_point():
        scores = scores + mask
    elif mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    nothing = (scores == -math.inf).all(-1, keepdim=True)
    higher = scores.detach().to(statistics_dtype(scores.dtype))
    logsumexp = higher.logsumexp(-1).masked_fill(nothing.squeeze(-1), math.inf)
    weights = scores.masked_fill(nothing, 0).softmax(-1).masked_fill(nothing, 0)
    if seed is not None:
        weights = weights * _kept(seed, dropout_p, weights).to(weights.dtype) / (1 - dropout_p)
    return weights @ value, logsumexp


def in_torch(*args: Any) -> tuple[Tensor, Tensor]:
    """`reference`, of bfloat16 on CPUs in float32, as the kernels there."""
    dtype = args[0].dtype
    if dtype != torch.bfloat16 or not args[0].is_cpu:
        return reference(*args)
    wide: Any = (a.float() if getattr(a, "dtype", None) == dtype else a for a in args)
    output, logsumexp = reference(*wide)
    return output.to(dtype), logsumexp


def _kept(seed: Tensor, dropout_p: float, weights: Tensor) -> Tensor:
    """Which of the weights [B, heads, Lq, Lk] dropout keeps."""
    batch, heads, queries, keys = weights.shape
    every = torch.arange(batch * heads, device=weights.device)
    rows = torch.arange(queries, device=weights.device).repeat(batch * heads)
    words = random_words(seed, 0, rows, every.repeat_interleave(queries), keys)
    return words.view(weights.shape) >= min(round(dropout_p * 2**32), _LARGEST_WORD)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of logsumexp: every weight's gradient has its error, which 8 bits would make large."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _empty_rows(like: Tensor, width: int) -> Tensor:
    """A result for rows of `width`, its heads inside its rows in memory where `like`'s are."""
    batch, heads, rows, _ = like.shape
    if like.stride(1) >= like.stride(2):
        return like.new_empty(batch, heads, rows, width)
    return like.new_empty(batch, rows, heads, width).transpose(1, 2)


def _default_forward(*args: Any) -> tuple[Tensor, ...]:
    detached: Any = [a.detach() if isinstance(a, Tensor) else a for a in args]
    output, logsumexp = in_torch(*detached)
    return _empty_rows(args[0], output.size(-1)).copy_(output), logsumexp


def _default_backward(grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *tensors, seed = args[:5]
    is_causal, dropout_p, scale, mask_grad = args[7:]
    # Below a dispatch mode autograd is switched off in this thread; the gradient needs it.
    autograd_on = torch._C._SetExcludeDispatchKeyGuard(
        torch._C.DispatchKey.AutogradFunctionality, False
    )
    with autograd_on, torch.enable_grad():
        leaves: Any = [None if t is None else t.detach() for t in tensors]
        wanted = [t.requires_grad_() for t in leaves[: 4 if mask_grad else 3] if t is not None]
        leaves += [seed, is_causal, dropout_p, scale]
        output = in_torch(*leaves)[0]
        found = torch.autograd.grad(output, wanted, grad_output.detach())
    rows = zip(wanted[:3], found[:3], strict=True)
    like = [_empty_rows(t, t.size(-1)).copy_(g) for t, g in rows]
    none = grad_output.new_empty(0)
    return *like, found[3].contiguous() if mask_grad else none


def _fake_forward(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return _empty_rows(query, value.size(-1)), query.new_empty(
        query.shape[:-1], dtype=statistics_dtype(query.dtype)
    )


def _fake_backward(grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
    query, key, value, mask = args[:4]
    shape = mask.shape if args[-1] else (0,)
    like = (_empty_rows(t, t.size(-1)) for t in (query, key, value))
    return *like, query.new_empty(shape)


class MaskedAttention(torch.autograd.Function):
    """`fastrnn::masked_attention` with gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return below_autograd(torch.ops.fastrnn.masked_attention.default, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.is_causal, ctx.dropout_p, ctx.scale = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
        return gradients(MaskedAttentionBackward, ctx, grad)


def gradients(backward: Any, ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    """Of a `MaskedAttention`'s inputs, by the Function around its backward operator."""
    if grad is None:
        return (None,) * 8
    needs = ctx.needs_input_grad
    args = (grad, *ctx.saved_tensors, ctx.is_causal, ctx.dropout_p, ctx.scale, needs[3])
    found = backward.apply(*args) if second_order() else backward.forward(*args)
    return *(g if need else None for g, need in zip(found, needs[:4], strict=True)), *[None] * 4


class MaskedAttentionBackward(torch.autograd.Function):
    """`fastrnn::masked_attention_backward`, itself differentiable through the reference."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return tuple(torch.ops.fastrnn.masked_attention_backward.default(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:6])
        *ctx.options, ctx.mask_grad = inputs[8:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        grad, *inputs, mask, seed = ctx.saved_tensors
        if ctx.mask_grad:
            inputs.append(mask)

        def output(*inputs: Tensor) -> Tensor:
            args: Any = (*inputs[:3], *(inputs[3:] or (mask,)), seed, *ctx.options)
            return in_torch(*args)[0]

        def gradients(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            pullback: Any = torch.func.vjp(output, *inputs)[1]
            found: tuple[Tensor, ...] = pullback(grad)
            return found

        pullback: Any = torch.func.vjp(gradients, grad, *inputs)[1]
        found = pullback(grads[: len(inputs)])
        return *found, *[None] * (12 - len(found))


def register(prefix: str, function: Any, forward: Any, backward: Any) -> None:
    """Register `fastrnn::{prefix}masked_attention` and its backward, which have been defined.

    Args:
        prefix: of the operators' names.
        function: the autograd Function around them.
        forward: what runs where a device has no kernel of its own.
        backward: the same of the backward operator.
    """
    names = [f"{prefix}masked_attention", f"{prefix}masked_attention_backward"]
    fakes: tuple[Any, Any] = (_fake_forward, _fake_backward)
    rules = _attention_batching.forward, _attention_batching.backward
    for name, run, fake, rule in zip(names, (forward, backward), fakes, rules, strict=True):
        LIBRARY.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastrnn::{name}", fake)
        op = getattr(torch.ops.fastrnn, name).default
        torch.library.register_vmap(f"fastrnn::{name}", partial(rule, op))
    forward_op = getattr(torch.ops.fastrnn, names[0]).default

    def differentiable(*args: Any) -> tuple[Tensor, ...]:
        """The operator by itself, as exported and traced programs call it: gradients flow too."""
        if need_gradients(args):
            return tuple(function.apply(*args))
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(forward_op(*args))

    LIBRARY.impl(names[0], differentiable, "Autograd")


register("", MaskedAttention, _default_forward, _default_backward)
