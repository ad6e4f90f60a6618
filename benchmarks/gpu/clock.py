"""Times on a device: by its own events on a GPU, by the processor's clock elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

Run = Callable[[], object]
SAMPLE = 2e-3  # seconds: shorter runs are repeated within a sample
WARM_UP = 3


@dataclass
class Contender:
    """What is timed.

    Args:
        run: does the work once; on a GPU it only queues it.
        within: the setting it runs in, entered outside the timed part.
    """

    run: Run
    within: Callable[[], AbstractContextManager[object]]


class Clock:
    """Times runs on one device.

    Args:
        device: "cuda" or "cpu".
    """

    def __init__(self, device: str) -> None:
        self.device, self.cuda = device, torch.device(device).type == "cuda"

    def wait(self) -> None:
        """Until the device has done all that is queued."""
        if self.cuda:
            torch.cuda.synchronize()

    def alive(self) -> bool:
        """Whether the device still works in this process; after some errors it never does again."""
        try:
            self.wait()
            torch.ones(1, device=self.device).item()
        except RuntimeError:
            return False
        return True

    def milliseconds(self, run: Run, repeats: int = 1) -> float:
        """Of one run, out of `repeats` in a row."""
        self.wait()
        if not self.cuda:
            begin = time.perf_counter()
            for _ in range(repeats):
                run()
            return (time.perf_counter() - begin) * 1e3 / repeats
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(repeats):
            run()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / repeats

    def interleaved(
        self, contenders: dict[str, Contender], rounds: int, seconds: float
    ) -> dict[str, list[float]]:
        """Time all of them once per round, in turns forwards and backwards.

        Args:
            contenders: by name.
            rounds: stop after so many.
            seconds: or after this time, but not before five rounds.

        Returns:
            name -> milliseconds of each round.
        """
        repeats = {}
        for name, contender in contenders.items():
            with contender.within():
                for _ in range(WARM_UP):
                    took = self.milliseconds(contender.run)
            repeats[name] = max(1, round(SAMPLE * 1e3 / max(took, 1e-4)))
        found: dict[str, list[float]] = {name: [] for name in contenders}
        end = time.monotonic() + seconds
        for round_ in range(rounds):
            if round_ >= 5 and time.monotonic() > end:
                break
            for name in list(contenders)[:: -1 if round_ % 2 else 1]:
                contender = contenders[name]
                with contender.within():
                    found[name].append(self.milliseconds(contender.run, repeats[name]))
        return found


def captured(run: Run) -> Run:
    """`run` as replays of a CUDA graph.

    Raises:
        RuntimeError: it does something that no graph can hold.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
