"""The Triton attention kernels as operators: `fastrnn::triton_masked_attention` and its backward.

Operators of their own for the reasons of `triton_ops`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrnn import _attention, _kernels
from fastrnn._calls import below_autograd
from fastrnn._library import LIBRARY

for _op in (torch.ops.fastrnn.masked_attention, torch.ops.fastrnn.masked_attention_backward):
    _schema = str(_op.default._schema).removeprefix("fastrnn::")
    LIBRARY.define(f"triton_{_schema}", tags=(torch.Tag.pt2_compliant_tag,))
_WIDEST = {torch.float64: 64}  # units of a head; 256 of the other dtypes


def _forward(*args: Any) -> tuple[Tensor, ...]:
    return tuple(_kernels.module("attention").masked_attention(*args))


def _backward(*args: Any) -> tuple[Tensor, ...]:
    return tuple(_kernels.module("attention").masked_attention_backward(*args))


class TritonMaskedAttention(_attention.MaskedAttention):
    """`fastrnn::triton_masked_attention` with gradients, as `_attention.MaskedAttention`."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        op = torch.ops.fastrnn.triton_masked_attention.default
        return below_autograd(op, *args)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
        return _attention.gradients(TritonMaskedAttentionBackward, ctx, grad)


class TritonMaskedAttentionBackward(_attention.MaskedAttentionBackward):
    """Its backward operator, itself differentiable through the reference."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return tuple(torch.ops.fastrnn.triton_masked_attention_backward.default(*args))


_attention.register("triton_", TritonMaskedAttention, _forward, _backward)


def lacking(query: Tensor, value: Tensor) -> str | None:
    """Why no kernel of a CUDA device can run heads of these widths; None if one can."""
    most, got = _WIDEST.get(query.dtype, 256), max(query.size(-1), value.size(-1))
    if not query.is_cuda or got <= most:
        return None
    return f"the Triton kernels take heads of at most {most} units, got {got}"
