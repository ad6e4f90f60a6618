"""What the device can do: launches, barriers, memory, products. The floors are made of these."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.clock import Clock, Run, captured
from benchmarks.gpu.measure import precision
from fastrnn import _cuda

ROUNDS = 10_000  # of a barrier


def median(clock: Clock, run: Run, repeats: int = 1, tries: int = 7) -> float:
    """Milliseconds of one run."""
    run()
    return statistics.median(clock.milliseconds(run, repeats) for _ in range(tries))


def launch(clock: Clock) -> dict[str, float]:
    """Microseconds of a kernel that does next to nothing, alone and in a graph."""
    x = torch.zeros(1, device="cuda")

    def hundred() -> None:
        for _ in range(100):
            x.add_(1)

    eager = median(clock, hundred)
    return {"launch_us": eager * 10, "launch_in_graph_us": median(clock, captured(hundred)) * 10}


def _barrier(clock: Clock, cluster: int) -> float:
    space = torch.zeros(64, dtype=torch.int32, device="cuda")

    def run(rounds: int) -> Run:
        space.zero_()
        return lambda: torch.ops.fastrnn.cuda_barriers.default(space, cluster, rounds)

    # The launch and the first meeting are in both.
    took = [median(clock, run(rounds)) for rounds in (ROUNDS // 10, ROUNDS)]
    return (took[1] - took[0]) * 1e3 / (ROUNDS - ROUNDS // 10)


def clusters(clock: Clock) -> dict[str, float]:
    """Microseconds of a barrier among the blocks of a cluster."""
    facts = _cuda.facts(torch.cuda.current_device())
    assert isinstance(facts, _cuda.Facts), facts
    sizes = [2, 4, 8, 16] if facts.capability >= 90 else []
    return {f"cluster_{size}_barrier_us": _barrier(clock, size) for size in sizes}


def grid(clock: Clock) -> dict[str, float]:
    """Microseconds of a barrier of all blocks."""
    return {"grid_barrier_us": _barrier(clock, 0)}


def bandwidth(clock: Clock) -> dict[str, float]:
    """GB/s of a copy, bytes read and written, in memory and within the L2 cache."""
    found = {}
    for name, size in (("memory", 1 << 30), ("l2", 8 << 20)):
        a, b = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))

        def copy(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            b.copy_(a)

        repeats = 1 if name == "memory" else 100
        found[f"{name}_gb_s"] = 2 * size / median(clock, copy, repeats) * 1e-6
    return found


def products(clock: Clock) -> dict[str, float]:
    """TFLOP/s of a large product in each precision."""
    found = {}
    for name, dtype, size in (
        ("float64", torch.float64, 4096),
        ("float32", torch.float32, 4096),
        ("tf32", torch.float32, 8192),
        ("float16", torch.float16, 8192),
        ("bfloat16", torch.bfloat16, 8192),
    ):
        with precision(name):
            a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
            out = torch.empty_like(a)

            def product(a: torch.Tensor = a, b: torch.Tensor = b, out: Any = out) -> None:
                torch.mm(a, b, out=out)

            found[f"{name}_tflops"] = 2 * size**3 / median(clock, product, 3) * 1e-9
    return found


# By the names in cases.PEAKS.
PARTS: dict[str, Callable[[Clock], dict[str, float]]] = {
    f"peak-{part.__name__}": part for part in (launch, products, bandwidth, clusters, grid)
}
