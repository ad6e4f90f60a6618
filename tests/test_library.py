"""A package whose compiled files are damaged, left out, or of another version."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastrnn import _library

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package."""
    copy = tmp_path / "fastrnn"
    shutil.copytree(ROOT / "fastrnn", copy, ignore=shutil.ignore_patterns("lm", "__pycache__"))
    shutil.copytree(ROOT / "kernels", copy / "kernels")
    return copy


def _cut(package: Path, pattern: str) -> None:
    for path in package.glob(pattern):
        os.truncate(path, path.stat().st_size // 2)


def _run(package: Path) -> subprocess.CompletedProcess[str]:
    """A program beside the package that runs a layer."""
    program = package.parent / "program.py"
    program.write_text(
        "import fastrnn, torch\n"
        "fastrnn.RNN(2, 3)(torch.zeros(1, 1, 2))\n"
        "print(fastrnn.explain(fastrnn.RNN(2, 3)))\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_a_library_that_is_cut_short_is_refused(package: Path) -> None:
    _cut(package, "libfastrnn.so")
    done = _run(package)
    assert done.stdout.startswith("reference: runs")
    assert "libfastrnn.so is cut short: build or install it again" in done.stdout
    # Told once, at the program's own line.
    told = [line for line in done.stderr.splitlines() if "RuntimeWarning" in line]
    assert len(told) == 1 and told[0].startswith(f"{package.parent / 'program.py'}:1: ")


def test_a_library_that_does_not_load_says_why(package: Path) -> None:
    (package / "libfastrnn.so").write_text("not a library " * 10)
    assert "libfastrnn.so: invalid ELF header" in _run(package).stdout


def test_the_library_runs_without_the_module(package: Path) -> None:
    _cut(package, "_C.*.so")
    assert _run(package).stdout.startswith("native: runs")


def test_a_library_of_another_version_is_known_without_the_module(package: Path) -> None:
    _cut(package, "_C.*.so")
    schemas = package / "_schemas.py"
    schemas.write_text(schemas.read_text().replace("DIGEST = ", "DIGEST = 'other' + "))
    assert "are of another version of fastrnn" in _run(package).stdout
