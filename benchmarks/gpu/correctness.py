"""The tests that need a GPU, and a look for races in a small one of them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.supervise import ROOT

# By pytest where it is, else the same checks one by one.
PLAIN = (sys.executable, "-m", "tests.gpu_checks")


def marked() -> list[str]:
    """Test files with tests that need a GPU; the others may need packages that are not here."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    found = [p for p in files if re.search(r"mark\.gpu\b", p.read_text())]
    return [str(p.relative_to(ROOT)) for p in found]


def command() -> Sequence[str]:
    """What runs the tests here."""
    if importlib.util.find_spec("pytest") is None:
        return PLAIN
    return (sys.executable, "-m", "pytest", "-q", "-m", "gpu", *marked())


def _run(
    name: str, command: Sequence[str], seconds: float, **environment: str
) -> tuple[dict[str, Any], str]:
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        text = said.decode(errors="replace") if isinstance(said, bytes) else said
        return {"case": name, "errors": {name: f"took longer than {seconds:.0f} s"}}, text
    row: dict[str, Any] = {"case": name}
    last = (done.stdout.strip().splitlines() or [""])[-1]
    row["said"] = last
    if done.returncode:
        row["errors"] = {name: last or f"status {done.returncode}"}
    return row, done.stdout


def tests(seconds: float) -> tuple[dict[str, Any], str]:
    """A row, and all that was said."""
    return _run("tests", command(), seconds, FASTRNN_REQUIRE_GPU="1")


def racecheck(seconds: float) -> tuple[dict[str, Any], str]:
    """Our kernels under compute-sanitizer's racecheck, in one small layer."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"case": "racecheck", "skipped": "there is no compute-sanitizer"}, ""
    options = ("--tool", "racecheck", "--kernel-regex", "kns=fastrnn", "--error-exitcode", "9")
    row, said = _run("racecheck", (tool, *options, *PLAIN, "--small"), seconds)
    if "took longer" in str(row.get("errors")):
        return {"case": "racecheck", "skipped": f"took longer than {seconds:.0f} s"}, said
    return row, said
