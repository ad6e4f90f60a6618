"""The raw operators' arguments, checked: a kernel reads memory where a wrong shape says."""

from __future__ import annotations

import torch
from torch import Tensor

from .cells import CELLS


def fitting(name: str, tensor: Tensor | None, like: Tensor, *shape: int) -> Tensor | None:
    """`tensor`, contiguous, if it has a shape and the dtype and device of `like`."""
    if tensor is None:
        return None
    wanted, got = (
        f"{list(size)} {t.dtype} on {t.device}"
        for size, t in ((shape, like), (tensor.shape, tensor))
    )
    if wanted != got:
        raise ValueError(f"recurrence: {name} must be {wanted}, got {got}")
    return tensor.contiguous()


def absent(**tensors: Tensor | None) -> None:
    """Raise unless tensors that only other kernels know are None."""
    for name, tensor in tensors.items():
        if tensor is not None:
            raise ValueError(f"recurrence: {name} must be None for the Triton kernels")


def known_cell(name: str) -> None:
    """Raise unless there are kernels for a cell."""
    if name not in CELLS:
        raise ValueError(f"recurrence: cell must be one of {list(CELLS)}, got {name!r}")


def steps(batch_sizes: Tensor, batch: int, rows: int) -> list[int]:
    """The sizes, if they divide `rows` among the steps of `batch` sequences."""
    if batch_sizes.dtype != torch.int64 or batch_sizes.dim() != 1 or not batch_sizes.is_cpu:
        raise ValueError(
            "recurrence: batch_sizes must be a CPU int64 tensor [T], "
            f"got {batch_sizes.dtype} {list(batch_sizes.shape)} on {batch_sizes.device}"
        )
    sizes = batch_sizes.tolist()
    if sizes[:1] != [batch] or sizes != sorted(sizes, reverse=True) or sum(sizes) != rows:
        raise ValueError(
            f"recurrence: batch_sizes must be non-increasing from B = {batch} and sum to "
            f"N = {rows}, got {sizes}"
        )
    return sizes


def probabilities(zoneout: list[float], states: int) -> None:
    """Raise unless there are S numbers in [0, 1], or none."""
    if len(zoneout) not in (0, states) or not all(0 <= p <= 1 for p in zoneout):
        raise ValueError(
            f"recurrence: zoneout must be S = {states} numbers in [0, 1] or none, got {zoneout}"
        )
