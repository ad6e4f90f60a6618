"""Run the benchmarks: one process per malloc setting, since a setting reaches the peer too."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import fastrnn
from benchmarks import attention, language_model, recurrent, timing

SUITES = {
    "recurrent": recurrent.rows,
    "language_model": language_model.rows,
    "attention": attention.rows,
}
# glibc gives large freed buffers back to the system at once; "kept" stops it.
MALLOC = {
    "default": {},
    "kept": {"MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_MMAP_THRESHOLD_": "4294967296"},
}


def measure(suite: str, malloc: str, quick: bool) -> None:
    """Measure in this process; print each row as it comes, keep them at the end."""
    found = []
    for row in SUITES[suite](quick):
        row = {"suite": suite, "malloc": malloc} | row
        found.append(row)
        case = " ".join(
            f"{k}={v}" for k, v in row.items() if isinstance(v, str | int) and k != "suite"
        )
        times = " ".join(f"{k} {v['p50']:.3f} ms" for k, v in row.items() if is_times(v))
        ratios = " ".join(f"{v:.2f}x {k}" for k, v in row["ratio"].items())
        floor = f", {row['floor_fraction']:.0%} of the floor" if "floor_fraction" in row else ""
        print(f"{case}: {times}: {ratios}{floor}", flush=True)
    print(f"kept in {timing.keep(found, suite)}", flush=True)


def is_times(value: object) -> bool:
    """Whether a row's value holds percentiles."""
    return isinstance(value, dict) and "p50" in value


def main() -> int:
    """Parse the command line, start one process per suite and setting."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--suite", choices=SUITES, action="append", help="default: all")
    parser.add_argument("--malloc", choices=MALLOC, action="append", help="default: both")
    parser.add_argument("--quick", action="store_true", help="small shapes only")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    suites, settings = options.suite or list(SUITES), options.malloc or list(MALLOC)
    if options.here:
        measure(suites[0], settings[0], options.quick)
        return 0
    print(fastrnn.show_config(), flush=True)
    for suite in suites:
        for malloc in settings:
            command = [sys.executable, "-m", "benchmarks", "--here"]
            command += ["--suite", suite, "--malloc", malloc, *["--quick"] * options.quick]
            code = subprocess.run(command, env=os.environ | MALLOC[malloc]).returncode
            if code:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
