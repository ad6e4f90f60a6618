"""Processes that measure, under each malloc setting: a setting reaches the peer, too."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from types import TracebackType
from typing import Any

import torch

from benchmarks.apart import PATIENCE
from benchmarks.cases import Case, Row, held, measure
from benchmarks.machine import ROOT

# glibc gives large freed buffers back to the system at once; "kept" stops it.
MALLOC = {
    "default": {},
    "kept": {"MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_MMAP_THRESHOLD_": "4294967296"},
}
# Memory is seen where every buffer is the system's again as soon as it is freed, whichever thread
# made it: elsewhere the same run was seen to add 9 or 44 MB.
_EXACT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}


class _Worker:
    """A process that answers questions about cases, each from a copy of itself that has run nothing
    yet: what malloc, or a library, learns from one case would change the next.

    Args:
        settings: its environment, beside ours.
    """

    def __init__(self, settings: dict[str, str]) -> None:
        self._settings = settings
        self._process: subprocess.Popen[str] | None = None

    def ask(self, what: str, name: str, quick: bool) -> dict[str, Any]:
        """The answer, or `error`.

        Args:
            what: "times" or "memory".
            name: a case's.
            quick: few rounds.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker"],
                cwd=ROOT,
                env=os.environ | self._settings,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps([what, name, quick]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return dict(json.loads(answer))
        return {"error": f"the worker ended with code {process.wait()}"}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()


class Workers:
    """Measures cases under every setting; a context that ends its processes."""

    def __init__(self) -> None:
        self._workers = {name: _Worker(settings) for name, settings in MALLOC.items()}
        self._exact = _Worker(_EXACT)
        self._held: tuple[str, dict[str, Any]] = ("", {})  # of the last case

    def measure(self, case: Case, malloc: str, quick: bool) -> Row:
        """A case's row under a malloc setting.

        Args:
            case: what to measure.
            malloc: a key of MALLOC.
            quick: few rounds, and no memory.
        """
        start: Row = {"case": case.name, "suite": case.suite, **case.columns, "malloc": malloc}
        row = self._workers[malloc].ask("times", case.name, quick)
        if "error" not in row and case.memory and not quick:
            if self._held[0] != case.name:
                self._held = (case.name, self._exact.ask("memory", case.name, quick))
            row |= self._held[1]
        return start | {"quick": quick} | row

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in (*self._workers.values(), self._exact):
            worker.close()


def main() -> None:
    """Answer each line of standard input, a question, with a line of standard output."""
    from benchmarks.suites import all_cases

    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    cases = all_cases()
    torch.testing.assert_close(
        torch.ones(1), torch.ones(1)
    )  # imports 500 modules: once, not per case
    for line in sys.stdin:
        what, name, quick = json.loads(line)
        child = os.fork()  # before anything has started threads
        if child == 0:
            signal.alarm(PATIENCE)
            case = cases[name]
            _answer(answers, measure(case, quick) if what == "times" else held(case))
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            how = f"signal {-code}" if code < 0 else f"code {code}"
            _answer(answers, {"error": f"the process ended with {how}"})


def _answer(file: int, answer: dict[str, Any]) -> None:
    with os.fdopen(os.dup(file), "w") as stream:
        stream.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
