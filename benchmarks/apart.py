"""Runs in processes of their own, for what malloc's state would carry from one run to another."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable

from benchmarks.timing import Run, Sample, sample

PATIENCE = 180  # seconds that a process may last
# After a parallel region OpenMP's threads spin for some milliseconds before they sleep; meanwhile
# they would take the processors from the next process.
SPINNING = 0.03


class Apart:
    """A run in a copy of this process, which must not have started threads yet.

    Args:
        make: makes the run; called in the copy.
    """

    def __init__(self, make: Callable[[], Run]) -> None:
        (asked, ask), (answered, answer) = os.pipe(), os.pipe()
        self._child = os.fork()
        if self._child == 0:
            signal.alarm(PATIENCE)
            os.close(ask)
            _serve(make, asked, answer)
            os._exit(0)
        os.close(asked)
        os.close(answer)
        self._ask, self._answer = os.fdopen(ask, "w"), os.fdopen(answered)

    def sample(self, repeats: int) -> Sample:
        """As `timing.sample`, there."""
        time.sleep(SPINNING)
        try:
            self._ask.write(f"{repeats}\n")
            self._ask.flush()
            line = self._answer.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError("the process of a run ended")
        return Sample(*json.loads(line))

    def close(self) -> None:
        """End the process."""
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        self._answer.close()
        self._ask.close()


def _serve(make: Callable[[], Run], asked: int, answer: int) -> None:
    run = make()
    with os.fdopen(asked) as questions, os.fdopen(answer, "w") as answers:
        for line in questions:
            answers.write(json.dumps(sample(run, int(line))) + "\n")
            answers.flush()


def in_a_copy(function: Callable[[], object]) -> None:
    """Call a function in a copy of this process.

    Args:
        function: what it raises, this does, as an AssertionError of the same text.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE)
        try:
            function()
        except Exception as error:
            os.write(write, (str(error).strip() or repr(error)).splitlines()[0].encode())
            os._exit(1)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise AssertionError(text or f"the process ended with code {code}")
