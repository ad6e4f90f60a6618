"""Interleaved timing, and the row that is kept of it."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastrnn
from fastrnn import _library

RESULTS = Path(__file__).parent / "results"
Run = Callable[[], object]


def interleaved(runs: dict[str, Run], rounds: int, warmup: int = 3) -> dict[str, list[float]]:
    """Time every run once per round, so that all meet the same noise.

    Args:
        runs: name -> what to time.
        rounds: counted rounds.
        warmup: rounds before them.

    Returns:
        name -> milliseconds [rounds].
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(warmup + rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if round_ >= warmup:
                times[name].append((time.perf_counter() - begin) * 1e3)
    return times


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    """p20, p50 and p80."""
    cuts = statistics.quantiles(milliseconds, n=5, method="inclusive")
    return {
        "p20": round(cuts[0], 4),
        "p50": round(statistics.median(milliseconds), 4),
        "p80": round(cuts[3], 4),
    }


def measured_peak() -> float:
    """float32 GFLOP/s of the processor's multiply-add units now, best of a few tries."""
    return max(torch.ops.fastrnn.cpu_peak.default() for _ in range(5))


def environment() -> dict[str, Any]:
    """Versions and machine, for every row."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return {
        "fastrnn": fastrnn.__version__,
        "commit": described.stdout.strip(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "instruction_set": _library.instruction_set,
    }


def compare(
    case: dict[str, Any],
    runs: dict[str, Run],
    floor_ms: float | None,
    rounds: int,
) -> dict[str, Any]:
    """Time ours against the peers and make the row.

    Args:
        case: what is measured, as columns.
        runs: "ours" and the peers, by name.
        floor_ms: what the hardware needs at least, in milliseconds; None if not known.
        rounds: counted rounds.

    Returns:
        The row: percentiles by name, each peer's ratio to ours (above 1: ours is faster), and the
        fraction of the floor.
    """
    times = interleaved(runs, rounds)
    row: dict[str, Any] = dict(case)
    row |= {name: percentiles(ms) for name, ms in times.items()}
    ours = row["ours"]["p50"]
    row["ratio"] = {name: round(row[name]["p50"] / ours, 3) for name in runs if name != "ours"}
    if floor_ms is not None:
        row["floor_ms"] = round(floor_ms, 4)
        row["floor_fraction"] = round(floor_ms / ours, 3)
    return row


def keep(rows: list[dict[str, Any]], name: str) -> Path:
    """Append rows, with the environment, to benchmarks/results/NAME.jsonl."""
    path = RESULTS / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    facts = environment()
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps(row | facts) + "\n")
    return path
