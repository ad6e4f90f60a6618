"""Processes that do not outlive their time, nor do those that they start; their words are kept.

Nor do they outlive who started them, be it killed: they would keep the device.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
_PRCTL = ctypes.CDLL(None).prctl
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def _end_with_parent() -> None:
    _PRCTL(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


@contextmanager
def started(command: Sequence[str], stdout: Any, **environment: str) -> Iterator[subprocess.Popen]:
    """A process in a session of its own, all of which is killed at the end."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # One that waits for a driver may not even end now.
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)


def finished(
    command: Sequence[str], seconds: float, log: Path, **environment: str
) -> tuple[int | None, list[str]]:
    """Run a command to its end.

    Args:
        command: program and arguments.
        seconds: the most that it may take.
        log: the file that what it says is added to.
        environment: variables to set.

    Returns:
        Its exit status, None if it took too long; the lines that it said, blank ones left out.
    """
    with log.open("ab") as file:
        before = file.tell()
        with started(command, file, **environment) as process:
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None
    text = log.read_bytes()[before:].decode(errors="replace")
    return status, [line for line in text.splitlines() if line.strip()]
