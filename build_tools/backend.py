"""In-tree PEP 517 backend: setuptools', building against the target environment's torch.

A build requirement of plain torch would fetch the newest release into every isolated build
(gigabytes, and headers of another version); this asks for torch only where there is none.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setuptools import build_meta

from build_tools import toolchain, torch_location

build_editable = build_meta.build_editable
build_sdist = build_meta.build_sdist
prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable

Config = Mapping[str, Any] | None


def _native_requirements() -> list[str]:
    try:
        toolchain.compiler()
    except toolchain.BuildError:
        return []  # nothing will be compiled; the build itself says so
    requirements = [] if shutil.which("ninja") else ["ninja"]
    torch = torch_location.find()
    if torch is None or not torch.supported:
        major, minor = torch_location.OLDEST
        requirements.append(f"torch>={major}.{minor}")
    return requirements


def build_wheel(
    wheel_directory: str,
    config_settings: Config = None,
    metadata_directory: str | None = None,
) -> str:
    """A wheel of the sources as they are: setuptools' own packs what earlier builds left, too."""
    for left in Path("build").glob("lib*"):
        shutil.rmtree(left)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def get_requires_for_build_wheel(config_settings: Config = None) -> list[str]:
    """What a wheel build needs besides setuptools."""
    return _native_requirements()


def get_requires_for_build_editable(config_settings: Config = None) -> list[str]:
    """What an editable build needs besides setuptools."""
    return _native_requirements()


def get_requires_for_build_sdist(config_settings: Config = None) -> list[str]:
    """A source distribution compiles nothing."""
    return []
