"""Masked-softmax attention as a function of tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastrnn import _attention, _checks, _library, triton_attention
from fastrnn._arguments import are_tensors, number
from fastrnn._autocast import lower_dtype
from fastrnn._calls import applied, below_autograd, by_functions
from fastrnn.backends import choose, chosen

_WIDEST = 256  # units of a head in the CUDA kernels
# Of each backend with kernels: the operator, and the autograd Function around it.
_OPERATORS: dict[str, tuple[Any, Any]] = {
    "native": (torch.ops.fastrnn.masked_attention.default, _attention.MaskedAttention),
    "triton": (
        torch.ops.fastrnn.triton_masked_attention.default,
        triton_attention.TritonMaskedAttention,
    ),
}


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale query key^T + mask) value, nothing of size Lq x Lk in memory.

    On CPUs 16 bits are computed in float32. On CUDA devices the C++ kernels take all four dtypes,
    or else the Triton kernels; products of float32 are exact.

    Args:
        query: [B, heads, Lq, E], or any other leading axes.
        key: [B, heads, Lk, E].
        value: [B, heads, Lk, D].
        mask: boolean or integer (True or not 0: attend), or of the query's dtype and added to the
            scaled scores; broadcastable to [B, heads, Lq, Lk]; default None: attend to all. To mask
            a whole row, use booleans or -inf: where all it adds is below -1e4, say, its scores
            and gradients are lost to rounding, as in torch's fused kernels.
        is_causal: query i attends to keys j <= i only, together with the mask; default False.
        dropout_p: probability of dropping a weight, in [0, 1), from torch's generator; default 0.
        scale: of the scores; default None: 1 / sqrt(E).

    Returns:
        [B, heads, Lq, D]; zeros where a query may attend to nothing, whose gradients are zeros too.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument's shape, dtype, device or value does not fit.
        RuntimeError: an explicitly chosen backend cannot run it.

    Source: Vaswani et al. 2017, eq. 1.
    """
    needed = {"query": query, "key": key, "value": value}
    are_tensors("masked_attention", needed, {"mask": mask})
    _checks.flag("masked_attention: is_causal", is_causal)
    lower = lower_dtype(query)
    if lower is not None:
        query, key, value = (t.to(lower) for t in (query, key, value))
        mask = mask.to(lower) if mask is not None and mask.is_floating_point() else mask
    _check(query, key, value, mask, dropout_p)
    lead, dtype = query.shape[:-2], query.dtype
    if mask is not None:
        mask = mask if mask.is_floating_point() or mask.dtype == torch.bool else mask != 0
        if mask.dim() < query.dim():
            mask = mask.reshape((1,) * (query.dim() - mask.dim()) + mask.shape)
        mask = _four_axes(mask if len(lead) < 3 else mask.expand(*lead, *mask.shape[-2:]))
    tensors = [_four_axes(t) for t in (query, key, value)]
    if dtype == torch.float16 and query.is_cpu:
        tensors = [t.float() for t in tensors]
        mask = mask.float() if mask is not None and mask.is_floating_point() else mask
    seed = torch.randint(2**63 - 1, (1,), device=query.device) if dropout_p else None
    scale = query.size(-1) ** -0.5 if scale is None else _finite(scale)
    args: Any = (*tensors, mask, seed, is_causal, float(dropout_p), float(scale))
    lacks = _lacking(query, value) if query.is_cuda else ()
    backend = chosen(tensors[0], None, *lacks)
    if backend == "reference":
        output = _attention.in_torch(*args)[0]
    else:
        op, function = _OPERATORS[backend]
        output = (applied(function, *args) if by_functions() else below_autograd(op, *args))[0]
    result: Tensor = output if len(lead) == 2 else output.reshape(*lead, *output.shape[-2:])
    return result.to(dtype)


def _finite(scale: float) -> float:
    number("masked_attention: scale", scale)
    if not -math.inf < scale < math.inf:
        raise ValueError(f"masked_attention: scale must be finite, got {scale!r}")
    return scale


def _lacking(query: Tensor, value: Tensor) -> tuple[str | None, str | None]:
    """Why the C++ kernels, and the Triton kernels, cannot run heads of these widths."""
    widest = max(query.size(-1), value.size(-1))
    in_cpp = f"the CUDA kernels take heads of at most {_WIDEST} units, got {widest}"
    refused = query.is_cuda and widest > _WIDEST
    return in_cpp if refused else None, triton_attention.lacking(query, value)


def explained(query: Tensor) -> list[str]:
    """Which backend attends with such queries and values, and why not the others, a line each."""
    choice = choose(query, None, *_lacking(query, query))
    how = {
        "native": "tiles on the GPU" if query.is_cuda else f"tiles, {_library.instruction_set}",
        "triton": "fused Triton kernels",
        "reference": "products and softmax in torch",
    }
    lines = [f"{choice.backend}: runs masked attention ({how[choice.backend]})"]
    return lines + [f"{name}: no, {reason}" for name, reason in choice.refused.items()]


def _four_axes(tensor: Tensor) -> Tensor:
    """Leading axes added or merged until there are two."""
    if tensor.dim() == 4:
        return tensor
    return tensor.flatten(0, -4) if tensor.dim() > 4 else tensor[(None,) * (4 - tensor.dim())]


def _wrong(name: str, expected: str, got: object) -> ValueError:
    return ValueError(f"masked_attention: {name} must be {expected}, got {got}")


def _check(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float
) -> None:
    shape, dtype, device = list(query.shape), query.dtype, query.device
    if len(shape) < 2:
        raise _wrong("query", "[..., Lq, E]", shape)
    if not query.is_floating_point():
        raise _wrong("query", "of a floating dtype", dtype)
    *lead, queries, size = shape
    if size == 0:
        raise _wrong("query", "[..., Lq, E] with E of at least 1", shape)
    keys = key.size(-2) if key.dim() >= 2 else 0
    if [*key.shape] != [*lead, keys, size]:
        raise _wrong("key", f"{[*lead, 'Lk', size]}", [*key.shape])
    width = value.size(-1) if value.dim() else 0
    if [*value.shape] != [*lead, keys, width]:
        raise _wrong("value", f"{[*lead, keys, 'D']}", [*value.shape])
    for name, tensor in (("key", key), ("value", value), ("mask", mask)):
        if tensor is None:
            continue
        if tensor.device != device:
            raise _wrong(name, f"on {device}", tensor.device)
        free = name == "mask" and not tensor.is_floating_point() and not tensor.is_complex()
        if tensor.dtype != dtype and not free:
            raise _wrong(name, f"{dtype}", tensor.dtype)
    if mask is not None:
        full = [*lead, queries, keys]
        fits = mask.dim() <= len(full) and all(
            m in (1, n) for m, n in zip(mask.shape[::-1], full[::-1], strict=False)
        )
        if not fits:
            raise _wrong("mask", f"broadcastable to [B, heads, Lq, Lk] = {full}", [*mask.shape])
    number = isinstance(dropout_p, float | int) and not isinstance(dropout_p, bool)
    if not number or not 0 <= dropout_p < 1:
        raise _wrong("dropout_p", "in [0, 1)", repr(dropout_p))
