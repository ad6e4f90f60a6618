"""The compiled library on this machine: the one that is there if it runs, else built in place."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.gpu.supervise import ROOT

NO_GPU = "torch sees no GPU"
# Prints why the library does not run on the GPU here, or nothing.
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
    print(found if isinstance(found, str) else "")
"""
# setuptools may be missing; the build needs nothing of it.
BUILD = """
from pathlib import Path
from build_tools import native
native.install(Path.cwd(), Path("fastrnn"))
"""


def refusal() -> str:
    """Why the library that is here does not run on the GPU; empty if it does."""
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        return last[0] if last else f"importing fastrnn ended with status {done.returncode}"
    return done.stdout.strip()


def build(seconds: float) -> str:
    """Build it for the GPU that is here; returns why that failed, or nothing."""
    environment = {"FASTRNN_CUDA": "1"}  # without its kernels for the GPU it is of no use here
    try:
        done = subprocess.run(
            [sys.executable, "-c", BUILD],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return f"the build took longer than {seconds:.0f} s"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or ["the build failed"])[-1]
