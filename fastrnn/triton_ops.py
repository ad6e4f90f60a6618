"""The Triton kernels as operators: `fastrnn::triton_recurrence` and its backward.

They have the schemas, fakes and autograd of `fastrnn::recurrence`, and names of their own: the
dispatcher has room for one kernel per operator and device, native ones have it on CUDA, and a
traced graph then says which backend it runs, whatever `use_backend` says by the time it does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrnn import _kernels, ops
from fastrnn._calls import below_autograd
from fastrnn._library import LIBRARY

for _op in (torch.ops.fastrnn.recurrence, torch.ops.fastrnn.recurrence_backward):
    _schema = str(_op.default._schema).removeprefix("fastrnn::")
    LIBRARY.define(f"triton_{_schema}", tags=(torch.Tag.pt2_compliant_tag,))


def _forward(*args: Any) -> tuple[Tensor, ...]:
    found = _kernels.module("recurrence").recurrence(*_detached(args))
    return tuple(found)


def _backward(*args: Any) -> tuple[Tensor, ...]:
    found = _kernels.module("recurrence").recurrence_backward(*_detached(args))
    return tuple(found)


def _detached(args: tuple[Any, ...]) -> list[Any]:
    """The products inside write where they are told, which autograd refuses."""
    return [a.detach() if isinstance(a, Tensor) else a for a in args]


class TritonRecurrence(ops.Recurrence):
    """`fastrnn::triton_recurrence` with gradients, as `ops.Recurrence`."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return below_autograd(torch.ops.fastrnn.triton_recurrence.default, *args, True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return ops.gradients(TritonRecurrenceBackward, ctx, grads)


class TritonRecurrenceBackward(ops.RecurrenceBackward):
    """`fastrnn::triton_recurrence_backward`, itself differentiable through the reference."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return tuple(torch.ops.fastrnn.triton_recurrence_backward.default(*args))


ops.register("triton_", TritonRecurrence, _forward, _backward)


def schedule(cell: str, hidden: int, tensor: Tensor) -> str:
    """How the kernels walk the sequence, in words."""
    with torch.cuda.device_of(tensor):
        found = _kernels.module("recurrence").schedule(cell, tensor.dtype, hidden)
    return str(found.NAME)
