"""AVX-512's kernels with their instructions emulated, under the tests of results.

A machine without AVX-512 would otherwise say nothing of them.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build_tools import native, plan, toolchain, torch_location

ROOT = Path(__file__).resolve().parent.parent
EMULATED = Path("csrc", "emulator", "avx512")
# In the place of AVX2, which the processor has, so that they are chosen.
SETS = {"portable": [], "avx2": ["-mavx2", "-mfma", "-isystem", str(EMULATED), "-Wno-psabi"]}
FOLDERS = ("benchmarks", "build_tools", "csrc", "fastrnn", "kernels", "tests")
TESTS = (
    *("attention", "batches", "dropout", "frozen", "layer_norm", "lengths", "loss", "modules"),
    *("parallel", "recurrence", "resets", "rows", "streaming", "zoneout"),
)


def test_every_instruction_in_use_is_emulated() -> None:
    sources = [path.read_text() for path in (ROOT / "csrc").glob("*.h")]
    used = {name for text in sources for name in re.findall(r"\b_mm512_\w+", text)}
    header = (ROOT / EMULATED / "immintrin.h").read_text()
    named_in_comments = {"_mm512_min_ps"}
    assert used - named_in_comments == set(re.findall(r"#define (_mm512_\w+)", header))


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="needs an x86-64 processor"
)
def test_results() -> None:
    tree = ROOT / "build" / "avx512"
    for name in FOLDERS:
        shutil.rmtree(tree / name, ignore_errors=True)
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so"))
    shutil.copy2(ROOT / "pyproject.toml", tree)
    found = torch_location.find()
    assert found is not None
    emulated = plan.Plan(tree, found, toolchain.compiler(), "not in this test", SETS)
    told = subprocess.run(
        [*emulated.cxx, *SETS["avx2"], "-E", "-dM", "-x", "c++", "-"],
        input="#include <immintrin.h>",
        cwd=tree,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "#define __AVX512BF16__ 1\n" in told.stdout
    for path in native._carry_out(emulated):
        native._replace(path, tree / "fastrnn")
    files = [f"tests/test_{name}.py" for name in TESTS]
    environment = {name: os.environ[name] for name in os.environ if name != "FASTRNN_CPU"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *files],
        cwd=tree,
        env={**environment, "PYTHONPATH": str(tree), "FASTRNN_REQUIRE_EXT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\d\d\d passed", done.stdout)
