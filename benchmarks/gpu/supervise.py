"""Runs tasks in worker processes: one that dies or hangs costs its own row, no other's."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.budget import Budget
from benchmarks.gpu.process import started
from benchmarks.gpu.protocol import family, heard

Row = dict[str, Any]
WORKER = (sys.executable, "-m", "benchmarks.gpu.worker")
START = 60  # seconds for a worker to import torch


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


class Supervisor:
    """Does tasks one after the other.

    Args:
        budget: the time there is for all of them.
        seconds: the most that a worker may be silent once it has begun, if it does not say.
        log: the file that what the workers say is added to.
        options: what every worker is told.
        command: what a worker is started by.
    """

    def __init__(
        self,
        budget: Budget,
        seconds: float,
        log: Path,
        options: Sequence[str] = (),
        command: Sequence[str] = WORKER,
    ) -> None:
        self.budget, self.seconds, self.log = budget, seconds, log
        self.command = [*command, *options]
        # What stays out of a task, or of all of a family -> why.
        self._without: dict[str, dict[str, str]] = {}
        self._wasted: Counter[tuple[str, str]] = Counter()  # seconds

    def rows(self, tasks: Sequence[str], keep: float = 0.0) -> Iterator[Row]:
        """A row for every task: measured, failed or, out of time, skipped.

        What a worker was trying when it was lost is left out when the task is done again.

        Args:
            tasks: names that the worker knows.
            keep: seconds of the budget that are for others.
        """
        left = list(tasks)
        while left:
            if self.budget.share(self.seconds, keep) < 1:
                yield from ({"case": task, "skipped": "out of time"} for task in left)
                return
            task, tried, why, since = left[0], None, "", time.monotonic()
            for row in self._one_process(left, keep):
                if "lost" in row:
                    why = row["lost"]
                    break
                since = time.monotonic()
                if "begin" in row:
                    task, tried = row["begin"], None
                elif "trying" in row:
                    tried = row["trying"]
                else:
                    left.remove(row["case"])
                    yield row
            if task not in left or not self.budget.share(1, keep):
                continue
            if tried:
                self._leave_out(task, tried, why, time.monotonic() - since)
            else:
                left.remove(task)
                yield {"case": task, "errors": {"case": why}}

    def _leave_out(self, task: str, tried: str, why: str, seconds: float) -> None:
        """Of one task; of its family once that has cost as much as two that hang."""
        self._without.setdefault(task, {})[tried] = why
        kind = family(task)
        self._wasted[kind, tried] += max(seconds, self.seconds / 4)  # a new worker's start
        if self._wasted[kind, tried] >= 2 * self.seconds:
            self._without.setdefault(kind, {})[tried] = f"left out after {task}: {why}"

    def _one_process(self, tasks: Sequence[str], keep: float) -> Iterator[Row]:
        command = [*self.command, "--without", json.dumps(self._without), *tasks]
        said, began, limit = "", time.monotonic(), START

        def until() -> float:
            return min(began + limit - time.monotonic(), self.budget.share(1e9, keep))

        with self.log.open("a") as log, started(command, subprocess.PIPE) as process:
            try:
                for line in lines(process, until):
                    print(line, file=log, flush=True)
                    row = heard(line)
                    if row is None:
                        said = line.strip() or said
                        continue
                    began, limit = time.monotonic(), row.get("seconds", self.seconds)
                    yield row
                status = process.wait(max(1, until()))
                yield {"lost": f"the worker ended with status {status}: {said}"}
            except (TimeoutError, subprocess.TimeoutExpired):
                yield {"lost": f"took longer than {time.monotonic() - began:.0f} s"}
