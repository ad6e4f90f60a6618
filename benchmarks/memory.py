"""What a run holds at its highest."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path

import torch

_MARK, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peak_memory(run: Callable[[], object]) -> int | None:
    """Bytes by which a run raises what this process holds, at its highest; None where the system
    does not say.

    The run gets a thread of its own, which has no scratch memory from runs before, and what malloc
    holds free is handed back first: otherwise it would seem to cost nothing.
    """
    if not _MARK.exists():
        return None
    found: list[int] = []

    def watched() -> None:
        torch.zeros(1 << 20).sin_()  # starts this thread's team, which the first parallel run does
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)
        _MARK.write_text("5")  # the highest mark becomes what is held now
        before = _held("VmRSS")
        run()
        found.append(max(_held("VmHWM") - before, 0))

    thread = threading.Thread(target=watched)
    thread.start()
    thread.join()
    return found[0]


def _held(name: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024
