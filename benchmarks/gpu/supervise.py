"""Runs tasks in worker processes: one that dies or hangs costs its own row, no other's."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.budget import Budget

ROOT = Path(__file__).resolve().parent.parent.parent
Row = dict[str, Any]
WORKER = (sys.executable, "-m", "benchmarks.gpu.worker")


def lines(process: subprocess.Popen[bytes], until: Callable[[], float]) -> Iterator[str]:
    """What the process prints, line by line, for as long as `until` gives it seconds.

    Raises:
        TimeoutError: it has none left.
    """
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        rest = b""
        while True:
            left = until()
            if left <= 0 or not selector.select(left):
                raise TimeoutError
            chunk = process.stdout.read(1 << 16)
            if not chunk:
                return
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)


def _parsed(line: str) -> Row | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class Supervisor:
    """Does tasks one after the other.

    Args:
        budget: the time there is for all of them.
        seconds: the most that one task may take.
        options: what every worker is told.
        command: what a worker is started by.
    """

    def __init__(
        self,
        budget: Budget,
        seconds: float,
        options: Sequence[str] = (),
        command: Sequence[str] = WORKER,
    ) -> None:
        self.budget, self.seconds = budget, seconds
        self.command = [*command, *options]

    def rows(self, tasks: Sequence[str], keep: float = 0.0) -> Iterator[Row]:
        """A row for every task: measured, failed or, out of time, skipped.

        Args:
            tasks: names that the worker knows.
            keep: seconds of the budget that are for others.
        """
        left, without = list(tasks), {}
        while left:
            if self.budget.share(self.seconds, keep) < 1:
                yield from ({"case": task, "skipped": "out of time"} for task in left)
                return
            task, why, lost = left[0], "", None
            for row in self._one_process(left, without, keep):
                if "begin" in row:
                    task = row["begin"]
                elif "lost" in row:
                    lost = row
                elif "died" in row:
                    why = row["died"]
                else:
                    left.remove(row["case"])
                    yield row
            if lost is not None:
                # Once more, without it; should it be lost again, another one is left out.
                without.setdefault(task, {})[lost["lost"]] = lost["why"]
            elif task in left:
                left.remove(task)
                yield {"case": task, "errors": {"case": why or "the worker did not finish it"}}

    def _one_process(
        self, tasks: Sequence[str], without: dict[str, dict[str, str]], keep: float
    ) -> Iterator[Row]:
        command = [*self.command, "--without", json.dumps(without), *tasks]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        said, began = "", time.monotonic()

        def until() -> float:
            return min(began + self.seconds - time.monotonic(), self.budget.share(1e9, keep))

        try:
            for line in lines(process, until):
                row = _parsed(line)
                if row is None:
                    said = line.strip() or said
                    print(line, file=sys.stderr, flush=True)
                    continue
                began = time.monotonic()
                yield row
            code = process.wait()
            if code:
                yield {"died": f"the worker ended with status {code}: {said}"}
        except TimeoutError:
            yield {"died": f"took longer than {time.monotonic() - began:.0f} s"}
        finally:
            process.kill()
            process.wait()
