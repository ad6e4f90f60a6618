"""Interleaved timing: what is compared meets the same noise, and disturbed rounds are left out."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

Run = Callable[[], object]

SAMPLE = 2e-3  # seconds; what is shorter runs several times a sample, or what is around it is seen
WARM = 0.2  # seconds that a short run repeats before it counts: Python adapts its code to it
LONG = 0.3  # seconds of a run that needs one warm-up
GRACE = 2.0  # seconds more, for clean rounds to come
TOLERATED = 0.02  # of a sample's time may pass waiting for a processor


@dataclass
class Times:
    """What `interleaved` measured.

    Args:
        milliseconds: name -> one number per round that counts.
        rejected: rounds left out because something else ran on our processors.
        disturbed: too few rounds were clean, so those that were not count, too.
    """

    milliseconds: dict[str, list[float]] = field(default_factory=dict)
    rejected: int = 0
    disturbed: bool = False


def waited() -> dict[str, float]:
    """Seconds that each thread of this process was ready to run but did not, since it began; and
    those that the hypervisor took ("steal"). Empty where the system does not say."""
    found = {}
    try:
        for task in Path("/proc/self/task").iterdir():
            found[task.name] = int((task / "schedstat").read_text().split()[1]) * 1e-9
        steal = int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])
        found["steal"] = steal / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        pass  # a thread that has just ended, or no Linux
    return found


class Sample(NamedTuple):
    """Some runs in a row, timed together.

    Args:
        seconds: of one.
        lost: the part of the time that our threads waited for a processor.
    """

    seconds: float
    lost: float


class Sampled(Protocol):
    """What is run elsewhere."""

    def sample(self, repeats: int) -> Sample:
        """Run `repeats` times in a row."""


def sample(run: Run, repeats: int) -> Sample:
    """Run `repeats` times in a row."""
    before, begin = waited(), time.perf_counter()
    for _ in range(repeats):
        run()
    took, after = time.perf_counter() - begin, waited()
    lost = sum(after[key] - before.get(key, 0.0) for key in after)
    return Sample(took / repeats, lost / took)


def interleaved(
    runs: Mapping[str, Run | Sampled],
    rounds: int = 60,
    seconds: float = 1.0,
    at_least: int = 5,
    warmup: int = 2,
    repeat: bool = True,
) -> Times:
    """Time every run once per round, in turns forwards and backwards.

    Args:
        runs: name -> what to time; it returns when the work is done.
        rounds: stop after so many clean ones.
        seconds: or after this time, if `at_least` rounds are clean; and GRACE seconds later in any
            case, when `at_least` rounds of either kind are done.
        at_least: rounds that count, at the least.
        warmup: runs before them; one, if it takes long.
        repeat: a short run repeats for WARM seconds before them, and SAMPLE in each of them.

    Returns:
        Milliseconds of the rounds in which no other program took our processors.
    """
    samplers = {
        name: partial(sample, run) if callable(run) else run.sample for name, run in runs.items()
    }
    repeats = {}
    for name, sampler in samplers.items():
        for _ in range(warmup):
            took = sampler(1).seconds
            if took > LONG:
                break
        if repeat and took < WARM / 10:
            took = sampler(round(WARM / max(took, 1e-7))).seconds
        repeats[name] = max(1, round(SAMPLE / max(took, 1e-7))) if repeat else 1
    clean: list[dict[str, Sample]] = []
    other: list[dict[str, Sample]] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        while len(clean) < rounds:
            spent = time.perf_counter() - start
            if spent > seconds and len(clean) >= at_least:
                break
            if spent > seconds + GRACE and len(clean) + len(other) >= at_least:
                break
            names = list(runs) if (len(clean) + len(other)) % 2 == 0 else list(runs)[::-1]
            found = {name: samplers[name](repeats[name]) for name in names}
            undisturbed = all(each.lost <= TOLERATED for each in found.values())
            (clean if undisturbed else other).append(found)
    finally:
        if collecting:
            gc.enable()
    disturbed = len(clean) < min(at_least, rounds)
    counted = clean + other if disturbed else clean
    samples = {name: [found[name].seconds * 1e3 for found in counted] for name in runs}
    return Times(samples, 0 if disturbed else len(other), disturbed)


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    """p20, p50 and p80, and how many numbers they are of."""
    cuts = statistics.quantiles(milliseconds, n=5, method="inclusive")
    found = {"p20": cuts[0], "p50": statistics.median(milliseconds), "p80": cuts[3]}
    return {name: float(f"{value:.5g}") for name, value in found.items()} | {
        "rounds": len(milliseconds)
    }
