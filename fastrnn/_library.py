"""The operators, and libfastrnn.so, which implements them."""

from __future__ import annotations

import ctypes
import importlib
import importlib.machinery
import inspect
import mmap
import struct
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


def _check_whole(path: Path) -> None:
    """Raise OSError for a library that has lost its end: the system would kill who loads it."""
    with path.open("rb") as file:
        head = file.read(64)
    end = 64
    if head[:5] == b"\x7fELF\x02" and len(head) == end:
        table, size, rows = struct.unpack_from("=Q10x2H", head, 40)  # which comes last in the file
        end = table + size * rows
    if path.stat().st_size < end:
        raise OSError(f"{path} is cut short: build or install it again")


def build_info() -> dict[str, Any]:
    """How the compiled pieces were built: compiler, flags, instruction sets, CUDA archs."""
    try:
        own = _FOLDER / f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
        if own.exists():
            _check_whole(own)
        module = importlib.import_module("fastrnn._C")
    except (ImportError, OSError) as error:
        return {"build_info": f"unavailable, {error}"}
    return dict(module.build_info())


def _of_this_version(library: Path) -> bool:
    """Whether the library's operators have the schemas defined above."""
    told = build_info().get("schemas")
    if told is not None:
        return bool(told == _schemas.DIGEST)
    # _C is left out, or of another Python: the library has the text, too (csrc/schemas.cpp).
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(_schemas.DIGEST.encode()) >= 0


def _load() -> str | None:
    """Load the compiled kernels; returns why not, if so."""
    library = _FOLDER / "libfastrnn.so"
    reason = _FOLDER / "libfastrnn.reason"  # left by a build that failed
    if not library.exists():
        why = reason.read_text("utf-8").strip() if reason.exists() else "they have not been built"
        return f"no compiled kernels: {why}"
    try:
        _check_whole(library)
        if not _of_this_version(library):
            return (
                "the compiled kernels are of another version of fastrnn: build or install it again"
            )
        torch.ops.load_library(str(library))
    except OSError as error:  # torch's tells nothing but the file, its cause why
        return f"the compiled kernels do not load: {str(error.__cause__ or error).splitlines()[0]}"
    return None


unavailable: str | None = _load()
if unavailable is not None:
    # At the line that imports fastrnn, beyond what our modules import of each other.
    ours = sum(Path(frame.filename).parent == _FOLDER for frame in inspect.stack(0))
    told = f"fastrnn runs on the reference backend: {unavailable}"
    warnings.warn(told, RuntimeWarning, stacklevel=ours + 1)
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
