"""How a kernel is cut into programs, tried out once for each kind of recurrence and device."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import lru_cache
from time import perf_counter
from typing import NamedTuple

import torch
import triton
from triton.runtime.driver import driver

INTERPRETED: bool = triton.knobs.runtime.interpret
_REPEATS = 5
_CLOCK = 2e9  # cycles a second, about the fastest device's
_LONGEST = 0.05  # seconds
_MARGIN = 0.95  # a later candidate has to be this much faster


@lru_cache
def _shared_memory(device: int) -> int:
    return driver.active.utils.get_device_properties(device)["max_shared_mem"]


def shared_memory() -> int:
    """Bytes that a block can have on the current device."""
    return 232_448 if INTERPRETED else _shared_memory(driver.active.get_current_device())


class Config(NamedTuple):
    """Sequences and units of a program, its warps, and tiles of loads that are under way."""

    rows: int
    units: int
    warps: int
    stages: int = 1

    @property
    def options(self) -> dict[str, int | bool]:
        """Of a launch. Fused multiply-adds are named, since Triton's default for them changes."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


choices: dict[tuple[object, ...], Config] = {}


def tuned(
    key: tuple[object, ...],
    candidates: Sequence[Config],
    device: torch.device,
    run: Callable[[Config], None],
) -> Config:
    """The candidate that runs fastest, found once per process, key and device.

    All candidates give the same bits, so a result does not depend on which one it is. The key
    holds neither the batch nor the length: they change from call to call.

    Args:
        key: what the choice may depend on.
        candidates: the first of them is taken where nothing can be timed: off a GPU, and while a
            graph is captured.
        device: where the tensors are.
        run: runs a candidate; it may be called any number of times.
    """
    if device.type != "cuda" or len(candidates) == 1:
        return candidates[0]
    key = (torch.cuda.get_device_name(device), *key)
    if key not in choices:
        if torch.cuda.is_current_stream_capturing():
            return candidates[0]
        best = None
        for candidate in candidates:
            time = _time(lambda: run(candidate))  # noqa: B023 (called at once)
            if best is None or time < best[0] * _MARGIN:
                best = time, candidate
        choices[key] = best[1]
    return choices[key]


def _time(run: Callable[[], None]) -> float:
    """Median milliseconds."""
    run()  # compiles
    started = perf_counter()
    run()
    # Kernels are shorter than their launches: these queue up behind a pause twice as long as all of
    # them, or else the events would time the host.
    pause = int(2 * _CLOCK * min(perf_counter() - started, _LONGEST))
    times = []
    for _ in range(_REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(pause)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def report() -> list[str]:
    """What has been tuned so far."""
    return [f"{' '.join(map(str, key))}: {config}" for key, config in choices.items()]
