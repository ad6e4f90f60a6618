"""A process that measures, for the program in __main__ to start, watch and start again.

It prints lines of JSON: {"begin": task} before a task, its row after it, and where a contender has
broken the device for this process {"lost": contender, "why": ...} before it ends.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from benchmarks.gpu import peaks
from benchmarks.gpu.attention import measurement
from benchmarks.gpu.cases import cases
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.measure import LostDevice

PEAKS = "peaks"


def say(row: dict[str, Any]) -> None:
    """One line."""
    print(json.dumps(row), flush=True)


def alive(device: str) -> bool:
    """Whether the device still works in this process; after some errors it never does again."""
    try:
        Clock(device).wait()
    except RuntimeError:
        return False
    return True


def measured_peaks(device: str) -> dict[str, Any]:
    """Every part of `peaks`; one that fails does not take the others with it."""
    row: dict[str, Any] = {"case": PEAKS, "errors": {}}
    for part in peaks.PARTS:
        try:
            found = part(Clock(device))
            row |= {name: float(f"{value:.4g}") for name, value in found.items()}
        except Exception as error:  # reported in the row
            row["errors"][part.__name__] = f"{type(error).__name__}: {error}".splitlines()[0]
    return row


def main() -> int:
    """Do the tasks named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.worker")
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a case's timing")
    parser.add_argument("--without", default="{}", help="JSON: task -> contender -> why")
    options = parser.parse_args()
    without = json.loads(options.without)
    known = {case.name: case for case in cases()}
    for task in options.tasks:
        say({"begin": task})
        if task == PEAKS:
            say(measured_peaks(options.device))
            continue
        try:
            case = measurement(known[task], options.device, without.get(task, {}))
            say(case.run(options.rounds, options.seconds))
        except LostDevice as lost:
            name, why = lost.args
            say({"lost": name, "why": why})
            return 1
        except Exception as error:  # the next case may do better
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            say({"case": task, "errors": {"case": why}})
            if not alive(options.device):
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
