"""A process that measures, for the program in __main__ to start, watch and start again.

What it says is in protocol.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from benchmarks.gpu.attention import measurement
from benchmarks.gpu.cases import cases
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.peaks import PARTS
from benchmarks.gpu.protocol import family, say


def measured_peak(part: str, device: str) -> dict[str, Any]:
    """One row of `PARTS`."""
    found = PARTS[part](Clock(device))
    return {"case": part} | {name: float(f"{value:.4g}") for name, value in found.items()}


def main() -> int:
    """Do the tasks named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.worker")
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a case's timing")
    parser.add_argument(
        "--without", type=json.loads, default={}, help="JSON: task or family -> contender -> why"
    )
    options = parser.parse_args()
    known = {case.name: case for case in cases()}
    for task in options.tasks:
        say({"begin": task})
        try:
            if task in PARTS:
                say(measured_peak(task, options.device))
                continue
            out = (options.without.get(name, {}) for name in (task, family(task)))
            case = measurement(known[task], options.device, *out)
            say(case.run(options.rounds, options.seconds))
        except Exception as error:  # the next case may do better
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            if not Clock(options.device).alive():
                say({"lost": why})
                return 1
            say({"case": task, "errors": {"case": why}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
