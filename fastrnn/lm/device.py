"""Devices: found by name, with the memory they have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from fastrnn import backends
from fastrnn.lm.errors import UserError


def find_device(name: str) -> torch.device:
    """A device that can compute, by torch's name for it.

    Args:
        name: "cpu", "cuda", "cuda:1" ...

    Returns:
        The device.

    Raises:
        UserError: torch does not know it, or it is not there.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"--device {name}: cannot be used: {reason}") from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # what asks for the current one means this
    return device


@contextmanager
def select_backend(name: str, device: torch.device) -> Iterator[str]:
    """Inside a `with` block, run all recurrent layers on one backend.

    Args:
        name: "native", "triton", "reference", or "auto": what FASTRNN_BACKEND says, else the best.
        device: where they will run.

    Yields:
        The name of the backend that will run.

    Raises:
        UserError: the backend asked for cannot run there.
    """
    with nullcontext() if name == "auto" else backends.use_backend(name):
        try:
            chosen = backends.choose(torch.empty(0, device=device)).backend
        except RuntimeError as error:
            raise UserError(f"--backend {name}: {error}") from error
        yield chosen


def memory_of(device: torch.device) -> int | None:
    """Bytes of memory in all, or None where they cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
