"""What a run holds at its highest."""

from __future__ import annotations

import ctypes
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import torch

_MARK = Path("/proc/self/clear_refs")


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
        # MKL spins on a lock as threads begin and end: for ever, if real-time priority keeps the
        # one that holds it from the processors.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        torch.zeros(1 << 20).sin_()  # starts this thread's team, which the first parallel run does
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)
        _MARK.write_text("5")  # the highest mark becomes what is held now
        before = _highest()
        run()
        found.append(max(_highest() - before, 0))

    thread = threading.Thread(target=watched)
    thread.start()
    thread.join()
    return found[0]


def _highest() -> int:
    # Linux sums its counts of pages up now and then; before and after the run, by the same ones.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
