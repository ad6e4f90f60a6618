"""Finds the torch to build against by its files, without importing it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

OLDEST = (2, 11)

# Run in the target environment; prints torch's __init__.py, or nothing.
_FIND = """
import importlib.util
spec = importlib.util.find_spec("torch")
print(spec.origin if spec and spec.origin else "")
"""


@dataclass(frozen=True)
class Torch:
    """One installed torch.

    Args:
        root: folder of the package (holds include/ and lib/).
        version: full version text, such as "2.13.0+cpu".
    """

    root: Path
    version: str

    @property
    def include(self) -> Path:
        """Folder of torch's headers (pybind11's are in it too)."""
        return self.root / "include"

    @property
    def lib(self) -> Path:
        """Folder of torch's shared libraries."""
        return self.root / "lib"

    @property
    def supported(self) -> bool:
        """Whether this torch is new enough to build against."""
        match = re.match(r"(\d+)\.(\d+)", self.version)
        return match is not None and (int(match[1]), int(match[2])) >= OLDEST


def _read(origin: str | None) -> Torch | None:
    if not origin:
        return None
    root = Path(origin).parent
    version_file = root / "version.py"
    if not version_file.is_file():
        return None
    match = re.search(r"^__version__\b.*?=\s*['\"](.+?)['\"]", version_file.read_text(), re.M)
    return Torch(root, match[1]) if match else None


def _in_this_interpreter() -> Torch | None:
    spec = importlib.util.find_spec("torch")
    return _read(spec.origin if spec else None)


def _in_target_environment() -> Torch | None:
    # pip isolates a build through PYTHONPATH alone: the same interpreter without it is the
    # environment that fastrnn is being installed into.
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _FIND], env=env, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    return _read(lines[-1]) if done.returncode == 0 and lines else None


def find() -> Torch | None:
    """The torch to build against.

    Returns:
        The build environment's own torch if it has one (it was asked for, or nothing is
        isolated), else the target environment's, else None.
    """
    return _in_this_interpreter() or _in_target_environment()
