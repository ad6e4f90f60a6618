"""Loads libfastrnn.so, the compiled kernels, and remembers why it could not."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent
_LIBRARY = _FOLDER / "libfastrnn.so"
_REASON = _FOLDER / "libfastrnn.reason"  # written by a build that failed


def _load() -> str | None:
    if not _LIBRARY.exists():
        reason = _REASON.read_text().strip() if _REASON.exists() else "it has not been built"
        return f"no compiled kernels: {reason}"
    try:
        torch.ops.load_library(str(_LIBRARY))
    except OSError as error:
        return f"the compiled kernels do not load: {str(error).splitlines()[0]}"
    return None


unavailable: str | None = _load()
if unavailable is not None:
    warnings.warn(
        f"fastrnn runs on the reference backend: {unavailable}", RuntimeWarning, stacklevel=2
    )


def build_info() -> dict[str, object]:
    """How the compiled pieces were built: compiler, flags, instruction sets, CUDA archs."""
    from fastrnn import _C

    info: dict[str, object] = _C.build_info()
    return info
