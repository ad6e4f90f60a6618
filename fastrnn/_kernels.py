"""Finds the Triton kernels, which are imported only when one of them is to run."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType


def _version() -> str | None:
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


# Constants, since Dynamo reads them: the triton package's version, None where there is none, and
# whether it runs kernels in its interpreter, on CPU tensors.
TRITON = _version()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def module(name: str) -> ModuleType:
    """`fastrnn.kernels.NAME`, from an installed package or from a checkout used in place."""
    try:
        return importlib.import_module(f"fastrnn.kernels.{name}")
    except ModuleNotFoundError as error:
        if error.name != "fastrnn.kernels":
            raise
    # The folder is mapped to this name on installation only.
    folder = Path(__file__).resolve().parent.parent / "kernels"
    spec = importlib.util.spec_from_file_location(
        "fastrnn.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["fastrnn.kernels"] = package
    spec.loader.exec_module(package)
    return importlib.import_module(f"fastrnn.kernels.{name}")


def tuned() -> list[str]:
    """What has been tuned in this process, a line each."""
    loaded = sys.modules.get("fastrnn.kernels.tuning")
    return [] if loaded is None else list(loaded.report())
