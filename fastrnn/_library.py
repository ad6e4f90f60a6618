"""The operators, and libfastrnn.so, which implements them."""

from __future__ import annotations

import ctypes
import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastrnn import _schemas

# The definitions live as long as this object does.
LIBRARY = torch.library.Library("fastrnn", "DEF")
for _schema in _schemas.SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

_FOLDER = Path(__file__).parent


def build_info() -> dict[str, Any]:
    """How the compiled pieces were built: compiler, flags, instruction sets, CUDA archs."""
    try:
        module = importlib.import_module("fastrnn._C")
    except ImportError as error:
        return {"build_info": f"unavailable, {error}"}
    return dict(module.build_info())


def _load() -> str | None:
    """Load the compiled kernels; returns why not, if so."""
    library = _FOLDER / "libfastrnn.so"
    reason = _FOLDER / "libfastrnn.reason"  # left by a build that failed
    if not library.exists():
        why = reason.read_text("utf-8").strip() if reason.exists() else "they have not been built"
        return f"no compiled kernels: {why}"
    if build_info().get("schemas", _schemas.DIGEST) != _schemas.DIGEST:
        return "the compiled kernels are of another version of fastrnn: build or install it again"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"the compiled kernels do not load: {str(error).splitlines()[0]}"
    return None


unavailable: str | None = _load()
if unavailable is not None:
    warnings.warn(
        f"fastrnn runs on the reference backend: {unavailable}", RuntimeWarning, stacklevel=2
    )
mistake: str | None = None  # in an environment variable


@contextmanager
def environment() -> Iterator[None]:
    """Read an environment variable, which may be wrong: then every backend refuses to run, and says
    why. The import goes on, so that programs can tell it in one line."""
    global unavailable, mistake
    try:
        yield
    except (ValueError, RuntimeError) as error:
        unavailable = mistake = str(error).splitlines()[0]


# "avx512_bf16", "avx512", "avx2" or "portable"; read once, since Dynamo traces no operator without
# tensors.
instruction_set = ""
if unavailable is None:
    # take_step(stepper, input, output), addresses all three: no operator, since the dispatcher
    # takes as long as a small layer's step.
    take_step = ctypes.CDLL(str(_FOLDER / "libfastrnn.so")).fastrnn_step
    take_step.argtypes, take_step.restype = [ctypes.c_void_p] * 3, ctypes.c_bool
    with environment():
        instruction_set = str(torch.ops.fastrnn.cpu_instruction_set.default())
