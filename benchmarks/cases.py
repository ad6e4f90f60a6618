"""What a benchmark case is, and how one is measured: checked first, then timed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks import machine
from benchmarks.apart import Apart, in_a_copy
from benchmarks.memory import peak_memory
from benchmarks.timing import Run, Times, interleaved, percentiles
from fastrnn import _library

Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What a case runs.

    Args:
        runs: name -> what to time, "ours" first; the others are what it is compared with.
        check: raises AssertionError unless the runs compute the same.
        multiply_adds: of the products that cannot be avoided; default None: no floor.
        itemsize: bytes of a number.
        bytes: what must be read and written at the least.
        barriers: how often the threads must meet.
        tokens: what one run takes in, for tokens per second.
    """

    runs: Mapping[str, Run]
    check: Callable[[], None]
    multiply_adds: int | None = None
    itemsize: int = 4
    bytes: int = 0
    barriers: int = 0
    tokens: int | None = None


@dataclass(frozen=True)
class Case:
    """One row to be.

    Args:
        suite: the file it comes from.
        label: its name within the suite.
        build: makes the work; called in the process that measures.
        columns: what tells it apart, beside the name.
        quick: whether it belongs to the quick run.
        threads: threads of torch; default None: as many as torch takes.
        malloc: settings to measure it under.
        seconds: time for its rounds.
        rounds: of them, at the least.
        memory: whether to look at it.
        apart: names of the runs, "ours" first, if each is to have a process of its own; default
            none: in turns in one process.
    """

    suite: str
    label: str
    build: Callable[[], Work]
    columns: dict[str, Any] = field(default_factory=dict)
    quick: bool = False
    threads: int | None = None
    malloc: tuple[str, ...] = ("default", "kept")
    seconds: float = 1.0
    rounds: int = 5
    memory: bool = True
    apart: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What `python -m benchmarks NAME` measures."""
        return f"{self.suite}/{self.label}"


def measure(case: Case, quick: bool = False) -> Row:
    """Check, then time a case.

    Args:
        case: what to measure.
        quick: few rounds.

    Returns:
        What the case's row gets; only `error` and threads if it cannot be built or its check fails.
    """
    seconds = min(case.seconds, 0.2) if quick else case.seconds
    with _threads(case.threads):
        row: Row = {"threads": torch.get_num_threads()}
        try:
            if case.apart:
                in_a_copy(lambda: _built(case).check())
                times = _timed_apart(case, seconds)
                work = _built(case)
            else:
                work = _built(case)
                work.check()
                times = interleaved(work.runs, seconds=seconds, at_least=case.rounds)
            return row | _numbers(work, times)
        except Exception as error:  # this row says so, the others go on
            first = (str(error).strip() or repr(error)).splitlines()[0]
            return row | {"error": f"{type(error).__name__}: {first}"}


def _timed_apart(case: Case, seconds: float) -> Times:
    with contextlib.ExitStack() as stack:
        runs = {}
        for name in case.apart:
            runs[name] = Apart(lambda name=name: _built(case).runs[name])
            stack.callback(runs[name].close)
        return interleaved(runs, seconds=seconds, at_least=case.rounds)


def held(case: Case) -> Row:
    """What each run holds at its highest beyond what is there before and after it."""
    with _threads(case.threads):
        work = _built(case)
        for run in work.runs.values():
            run()  # the first makes what stays: gradients
        return {"memory": {name: peak_memory(run) for name, run in work.runs.items()}}


def _built(case: Case) -> Work:
    torch.manual_seed(0)
    return case.build()


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _numbers(work: Work, times: Times) -> Row:
    found = {name: percentiles(ms) for name, ms in times.milliseconds.items()}
    ours = found["ours"]["p50"]
    row: Row = {
        "times": found,
        "ratio": {name: round(found[name]["p50"] / ours, 3) for name in found if name != "ours"},
        "rejected": times.rejected,
        "disturbed": times.disturbed,
        "bytes": work.bytes,
    }
    if work.tokens is not None:
        speeds = {name: round(work.tokens / ms["p50"] * 1e3) for name, ms in found.items()}
        row["tokens_per_s"] = speeds
    if work.multiply_adds is not None and _library.unavailable is None:
        row["floor"] = floor(work, ours)
    return row


def floor(work: Work, milliseconds: float) -> Row:
    """The least that the work takes on this machine, as measured now.

    Args:
        work: with its multiply-adds.
        milliseconds: what ours took.

    Returns:
        The rates; milliseconds of the products, of reading and writing, and of the barriers; the
        floor (the larger of the first two); and its fraction of our time.
    """
    assert work.multiply_adds is not None
    gflops = machine.product_rate(work.itemsize)
    gbytes, meet = machine.bandwidth(work.bytes), machine.barrier()
    products = 2 * work.multiply_adds / gflops * 1e-6
    traffic = work.bytes / gbytes * 1e-6
    least = max(products, traffic)
    return {
        "gflops": round(gflops, 1),
        "gbytes": round(gbytes, 1),
        "barrier_us": round(meet, 3),
        "products_ms": _digits(products),
        "bytes_ms": _digits(traffic),
        "barriers_ms": _digits(work.barriers * meet * 1e-3),
        "ms": _digits(least),
        "fraction": round(least / milliseconds, 3),
    }


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
