"""The compiled library on this machine: the one that is there if it runs, else built in place."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.gpu.process import finished

NO_GPU = "torch sees no GPU"
RUNS = "the library runs"
# Says why the library does not run on the GPU here, or that it does.
PROBE = f"""
import warnings
warnings.simplefilter("ignore")
import torch
from fastrnn import _cuda, _library
if not torch.cuda.is_available():
    print({NO_GPU!r})
elif _library.unavailable:
    print(_library.unavailable)
else:
    found = _cuda.facts(torch.cuda.current_device())
    print(found if isinstance(found, str) else {RUNS!r})
"""
# setuptools may be missing; the build needs nothing of it.
BUILD = """
from pathlib import Path
from build_tools import native
native.install(Path.cwd(), Path("fastrnn"))
"""


def refusal(log: Path, seconds: float = 60) -> str:
    """Why the library that is here does not run on the GPU; empty if it does."""
    status, said = finished((sys.executable, "-c", PROBE), seconds, log)
    if status is None:
        return f"importing fastrnn took longer than {seconds:.0f} s"
    if RUNS in said:
        return ""
    return said[-1] if said else f"importing fastrnn ended with status {status}"


def build(seconds: float, log: Path) -> str:
    """Build it for the GPU that is here; returns why that failed, or nothing."""
    # Without its kernels for the GPU it is of no use here.
    status, said = finished((sys.executable, "-c", BUILD), seconds, log, FASTRNN_CUDA="1")
    if status is None:
        return f"the build took longer than {seconds:.0f} s"
    return (said[-1] if said else "the build failed") if status else ""
