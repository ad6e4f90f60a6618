"""The machine and the program: their names, and the rates that floors are made of."""

from __future__ import annotations

import platform
import re
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import fastrnn
from fastrnn import _library

ROOT = Path(__file__).parent.parent


def git(*arguments: str) -> str:
    """What git says of this repository; nothing without git, or outside of one."""
    try:
        found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return found.stdout.strip()


def cpu_name() -> str:
    """The processor as the system calls it, with what tells its generation."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.+)$", text, re.M))
    family = f" (family {found['cpu family']}, model {found['model']})" if len(found) == 3 else ""
    return found.get("model name", platform.machine()) + family


def environment() -> dict[str, Any]:
    """Versions, machine and commit, for every row; what a run itself writes makes no tree dirty."""
    changed = git(
        "status", "--porcelain", "--untracked-files=no", ".", ":!benchmarks/results", ":!docs"
    )
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": git("rev-parse", "--short", "HEAD") or "unknown",
        "dirty": bool(changed),
        "fastrnn": fastrnn.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "instruction_set": _library.instruction_set or "none",
    }


def product_rate(itemsize: int = 4) -> float:
    """GFLOP/s of products of bfloat16, float32 or float64 (half of the latter) now, best of a few
    tries."""
    measured = min(itemsize, 4)
    best = max(torch.ops.fastrnn.cpu_peak.default(measured) for _ in range(5))
    return float(best * measured / itemsize)


def bandwidth(size: int) -> float:
    """GB/s at which all threads read `size` bytes again and again, best of some tries."""
    # From 16 KiB to 128 MiB: less is no other level of memory, more only takes time.
    memory = torch.ones(min(max(size, 1 << 14), 1 << 27) // 4)
    tries, end = [], time.perf_counter() + 0.03
    while len(tries) < 3 or time.perf_counter() < end:
        tries.append(torch.ops.fastrnn.cpu_bandwidth.default(memory))
    return max(tries)


def barrier() -> float:
    """Microseconds in which all threads meet, the median of a few tries."""
    return statistics.median(torch.ops.fastrnn.cpu_barrier.default() for _ in range(5))
