"""Run the benchmarks: each case is checked, then timed beside its peers; rows are kept."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import fastrnn
from benchmarks import results, suites
from benchmarks.cases import Row
from benchmarks.machine import environment
from benchmarks.worker import MALLOC, Workers
from fastrnn.lm.program import run_program


def line(row: Row) -> str:
    """A row as a person reads it."""
    start = f"{row['case']} ({row['malloc']})"
    if "error" in row:
        return f"{start}: {row['error']}"
    ours = row["times"]["ours"]
    text = f"{start}: {ours['p50']:.4g} ms [{ours['p20']:.4g}, {ours['p80']:.4g}]"
    text += "".join(f", {value:.2f}x {name}" for name, value in row["ratio"].items())
    if "floor" in row:
        text += f", {row['floor']['fraction']:.0%} of the floor"
    if "tokens_per_s" in row:
        text += f", {row['tokens_per_s']['ours']:,} tokens/s"
    if row["disturbed"]:
        text += ", DISTURBED: other programs took the processors"
    return text


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, measure, keep.

    Returns:
        0; 1 if a row is an error; 2 on a mistake in the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help="cases or patterns (default: all)")
    parser.add_argument("--malloc", choices=MALLOC, action="append", help="default: both")
    parser.add_argument("--quick", action="store_true", help="main cases, few rounds: a minute")
    parser.add_argument("--list", action="store_true", help="name the cases and do nothing")
    parser.add_argument("--out", type=Path, help=f"file to add rows to (default: {results.FULL})")
    options = parser.parse_args(arguments)
    try:
        cases = suites.chosen(options.names, options.quick)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        print(*(case.name for case in cases), sep="\n", flush=True)
        return 0
    settings = options.malloc or list(MALLOC)
    asked = [(case, malloc) for case in cases for malloc in case.malloc if malloc in settings]
    if not asked:
        parser.error(f"{cases[0].name} is measured under --malloc {cases[0].malloc[0]} only")
    print(fastrnn.show_config(), flush=True)
    path = options.out or (results.QUICK if options.quick else results.FULL)
    facts, began, errors = environment(), time.perf_counter(), 0
    with Workers() as workers:
        for case, malloc in asked:
            row = workers.measure(case, malloc, options.quick) | facts
            results.append([row], path)
            errors += "error" in row
            print(line(row), flush=True)
    print(f"{time.perf_counter() - began:.0f} s, rows added to {path}; {errors} errors")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(run_program("python -m benchmarks", main))
