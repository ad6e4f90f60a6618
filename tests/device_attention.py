"""Masked attention on the emulated device, by the kernels of csrc/attention_*.cu."""

from __future__ import annotations

import ctypes
import math
from ctypes import c_bool, c_double, c_int, c_int64, c_uint32, c_void_p

import torch
from torch import Tensor
from torch.nn.functional import pad

from tests.attentions import Case
from tests.emulator import DTYPES, Emulator, EmulatorError, pointer

SHARED = 227 << 10  # bytes that a block of an H200 can have
NAMES = ("output", "logsumexp", "grad_query", "grad_key", "grad_value", "grad_mask")


class Heads(ctypes.Structure):
    """`Heads` of attention_arguments.h; so are the others here."""

    _fields_ = [("data", c_void_p), *((name, c_int64) for name in ("batch", "head", "row"))]

    @classmethod
    def of(cls, tensor: Tensor | None) -> Heads:
        if tensor is None:
            return cls()
        strides = (0 if n == 1 else s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        return cls(pointer(tensor), *list(strides)[:3])


_ATTENTION = [
    *((n, c_int64) for n in ("batch", "heads", "queries", "keys", "size", "value_size")),
    *((n, Heads) for n in ("query", "key", "value")),
    *(("mask_kind", c_int), ("mask", Heads), ("mask_column", c_int64), ("causal", c_bool)),
    *(("scale", c_double), ("dropout", c_double), ("dropped_below", c_uint32), ("seed", c_void_p)),
]


class Forward(ctypes.Structure):
    _fields_ = [*_ATTENTION, ("output", Heads), ("logsumexp", c_void_p)]


class Backward(ctypes.Structure):
    _fields_ = [
        *(*_ATTENTION, ("grad_output", Heads), ("output", Heads), ("logsumexp", c_void_p)),
        *((n, Heads) for n in ("grad_query", "grad_key", "grad_value", "grad_mask")),
        *(("grad_mask_column", c_int64), ("statistics", c_void_p)),
    ]


def column_stride(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.size(3) == 1 else tensor.stride(3)


def run(
    device: Emulator,
    case: Case,
    grad: Tensor,
    dtype: torch.dtype,
    misalign: int = 0,
    shared_limit: int = SHARED,
    heads_inside: bool = False,
    gap: int = 0,
) -> dict[str, Tensor]:
    """Every result of both passes, by `NAMES`.

    Args:
        device: the emulator.
        case: what to attend to.
        grad: [B, heads, Lq, D], the output's gradient.
        dtype: of every tensor.
        misalign: elements that tensors are off a 16-byte boundary.
        shared_limit: bytes of shared memory that a block may have.
        heads_inside: lay queries out as [B, Lq, heads, E].
        gap: NaNs between the rows of queries, keys and values.
    """
    sums = torch.float64 if dtype == torch.float64 else torch.float32

    def empty(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return device.empty(shape, of, misalign * of.itemsize)

    def put(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        found = device.put(tensor.to(kind), misalign * kind.itemsize)
        assert found is not None
        return found

    apart = (put(pad(t, (0, gap), value=math.nan))[..., : t.size(3)] for t in case.tensors)
    query, key, value = apart
    if heads_inside:
        query = put(case.tensors[0].transpose(1, 2).contiguous()).transpose(1, 2)
    mask, seed = None if case.mask is None else put(case.mask), device.put(case.seed)
    kind = 0 if mask is None else 2 if mask.is_floating_point() else 1
    (B, heads, Lq, E), Lk, D = query.shape, *value.shape[2:]
    sizes = (B, heads, Lq, Lk, E, D, *map(Heads.of, (query, key, value)))
    dropped = min(round(case.dropout_p * 2**32), 2**32 - 1)
    options = (case.is_causal, case.scale, case.dropout_p, dropped, pointer(seed))
    arguments = (*sizes, kind, Heads.of(mask), column_stride(mask), *options)
    output, logsumexp = empty(B, heads, Lq, D), empty(B, heads, Lq, of=sums)
    grads = [empty(*t.shape) for t in (query, key, value)]
    to_mask = empty(*mask.shape) if mask is not None and kind == 2 else None

    def launch(name: str, arguments: ctypes.Structure) -> None:
        function = getattr(device.library, f"emulator_attention_{name}")
        code = function(DTYPES.index(dtype), ctypes.byref(arguments), c_int64(shared_limit))
        if code:
            report = device.library.emulator_report().decode()
            raise EmulatorError(report or f"launch: error {code}")

    launch("forward", Forward(*arguments, Heads.of(output), pointer(logsumexp)))
    given = (Heads.of(put(grad)), Heads.of(output), pointer(logsumexp))
    results = (*map(Heads.of, (*grads, to_mask)), column_stride(to_mask))
    statistics = device.empty((B, heads, Lq, 2), sums)
    launch("backward", Backward(*arguments, *given, *results, pointer(statistics)))
    found = (output, logsumexp, *grads, to_mask)
    return {n: t for n, t in zip(NAMES, found, strict=True) if t is not None}
