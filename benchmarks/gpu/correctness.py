"""What needs a GPU to be checked: our kernels, Triton's, and both under compute-sanitizer."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.budget import Budget
from benchmarks.gpu.process import finished
from benchmarks.gpu.report import Row, failed
from benchmarks.gpu.supervise import Supervisor

SECONDS = 15  # for a check
CHECKS = (sys.executable, "-m", "tests.gpu_checks")
# Compiled as they run, which takes longer than they do.
TRITON = (sys.executable, "-m", "pytest", "-v", "-m", "gpu", "tests/test_triton.py")
SANITIZER = "compute-sanitizer"
TOOLS = ("memcheck", "synccheck", "racecheck")  # the last sees shared memory alone


def checks(budget: Budget, log: Path) -> Row:
    """The checks of tests/gpu_checks.py; one that hangs or breaks the device costs itself."""
    from tests.gpu_checks import checks  # imports torch and fastrnn

    names = list(checks())
    rows = list(Supervisor(budget, SECONDS, log, command=CHECKS).rows(names))
    errors = {row["case"]: " ".join(row["errors"].values()) for row in rows if failed(row)}
    late = sum("skipped" in row for row in rows)
    said = f"{len(names) - len(errors) - late} of {len(names)} passed, {late} left out"
    return {"case": "checks", "said": said, "errors": errors}


def triton(seconds: float, log: Path) -> Row:
    """The tests of the Triton kernels."""
    for package in ("pytest", "triton"):
        if importlib.util.find_spec(package) is None:
            return {"case": "triton", "skipped": f"there is no {package}"}
    return _row("triton", TRITON, seconds, log, r" (FAILED|ERROR)\b")


def sanitized(tool: str, seconds: float, log: Path) -> Row:
    """Our kernels under one of compute-sanitizer's tools, in a few small layers."""
    if (program := shutil.which(SANITIZER)) is None:
        return {"case": tool, "skipped": f"there is no {SANITIZER}"}
    options = ("--tool", tool, "--kernel-regex", "kns=fastrnn", "--error-exitcode", "9")
    finding = r"^=+ (?!COMPUTE-|\S+ SUMMARY)\S"
    return _row(tool, (program, *options, *CHECKS, "--small"), seconds, log, finding)


def _row(name: str, command: Sequence[str], seconds: float, log: Path, finding: str) -> Row:
    """Of a command, with the first line of what it says that matches `finding`, should it fail."""
    status, said = finished(command, seconds, log, FASTRNN_REQUIRE_GPU="1")
    row: Row = {"case": name, "said": said[-1] if said else ""}
    found = [line for line in said if re.search(finding, line)]
    if status is None:
        row["skipped"] = f"took longer than {seconds:.0f} s"
    if found or status:
        row["errors"] = {name: found[0] if found else row["said"] or f"status {status}"}
    return row
