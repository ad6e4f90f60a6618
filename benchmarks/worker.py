"""A process that measures under one malloc setting: a setting reaches the peer, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from types import TracebackType

from benchmarks.cases import Row, measure
from benchmarks.machine import ROOT

# glibc gives large freed buffers back to the system at once; "kept" stops it.
MALLOC = {
    "default": {},
    "kept": {"MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_MMAP_THRESHOLD_": "4294967296"},
}
PATIENCE = 180.0  # seconds for a case


class Worker:
    """Measures cases one after the other in a process of its own.

    Args:
        malloc: a key of MALLOC.
    """

    def __init__(self, malloc: str) -> None:
        self._malloc = malloc
        self._process: subprocess.Popen[str] | None = None

    def measure(self, name: str, quick: bool) -> Row:
        """The row of a case; a process that dies or hangs makes it an error, the next starts anew.

        Args:
            name: the case's.
            quick: few rounds.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker"],
                cwd=ROOT,
                env=os.environ | MALLOC[self._malloc],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        patience = threading.Timer(PATIENCE, process.kill)
        patience.start()
        try:
            process.stdin.write(json.dumps({"name": name, "quick": quick}) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            patience.cancel()
        if not answer:
            return {
                "case": name,
                "suite": name.partition("/")[0],
                "quick": quick,
                "malloc": self._malloc,
                "error": f"the process ended with code {process.wait()}",
            }
        row: Row = json.loads(answer)
        return row | {"malloc": self._malloc}

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()


def main() -> None:
    """Answer every line of standard input, a case's name, with its row on standard output."""
    from benchmarks.suites import all_cases

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    cases = all_cases()
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(measure(cases[asked["name"]], asked["quick"])), file=answers, flush=True)


if __name__ == "__main__":
    main()
