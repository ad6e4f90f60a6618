"""Build if need be, check, measure, and keep the rows, in a few minutes: `make gpu`."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu import correctness, library, report
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.cases import AttentionCase, Case, cases
from benchmarks.gpu.supervise import ROOT, Supervisor

Row = dict[str, Any]
# Prints what the rows were measured on.
ENVIRONMENT = """
import json, platform, torch, fastrnn
device = torch.cuda.current_device()
print(json.dumps({"gpu": torch.cuda.get_device_name(device), "torch": torch.__version__,
    "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
    "python": platform.python_version(), "fastrnn": fastrnn.__version__}))
"""


def environment() -> Row:
    """Machine, versions and commit, for every row."""
    commit = "unknown"
    if git := shutil.which("git"):
        command = [git, "describe", "--always", "--dirty", "--exclude=*"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        commit = done.stdout.strip() or commit
    done = subprocess.run(
        [sys.executable, "-c", ENVIRONMENT], cwd=ROOT, capture_output=True, text=True
    )
    told = done.stdout.strip().splitlines()
    return {"suite": "gpu", "commit": commit} | (json.loads(told[-1]) if told else {})


def append(rows: list[Row], path: Path) -> None:
    """A line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def chosen(pattern: str) -> list[Case | AttentionCase]:
    """The cases whose name holds `pattern`."""
    return [case for case in cases() if pattern in case.name]


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=7.5, help="for everything")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.jsonl"
    )
    options = parser.parse_args(arguments)
    if options.minutes <= 0 or options.rounds < 5:
        parser.error("--minutes must be positive, and --rounds at least 5")
    if not chosen(options.only):
        parser.error(f"--only: no case's name holds {options.only!r}")
    return options


def main() -> int:
    """Exit status 1 if anything failed, 2 if nothing could be measured."""
    options = parsed()
    budget = Budget(options.minutes * 60)
    why = library.refusal()
    if why and why != library.NO_GPU:
        print(f"the library that is here does not do: {why}; building", flush=True)
        why = library.build(budget.share(240)) or library.refusal()
    if why:
        print(f"gpu: {why}", file=sys.stderr)
        return 2
    facts = environment()
    print(json.dumps(facts), flush=True)
    rows: list[Row] = []

    def keep(row: Row) -> None:
        rows.append(row)
        append([row | facts], options.results)
        shown = {k: v for k, v in row.items() if k in ("case", "ratio", "errors", "said")}
        print(json.dumps(shown), flush=True)

    if not options.no_tests:
        row, said = correctness.tests(budget.share(150, keep=60))
        keep(row)
        if report.failed(row):
            print(said, flush=True)
    measured = chosen(options.only)
    supervisor = Supervisor(budget, 60, ("--rounds", str(options.rounds)))
    peaks: Row = {}
    for row in supervisor.rows(["peaks"]):
        peaks = row
        keep(row)
    by_name = {case.name: case for case in measured}
    for row in supervisor.rows(list(by_name), keep=0 if options.no_tests else 45):
        if "precision" in row:
            case = by_name[row["case"]]
            row |= report.floor(row, case.operations, case.chain, peaks)
        keep(row)
    if not options.no_tests:
        row, said = correctness.racecheck(budget.share(60))
        keep(row)
        if report.failed(row):
            print(said, flush=True)
    print(report.table(rows))
    print(f"kept in {options.results}")
    return int(any(map(report.failed, rows)))


if __name__ == "__main__":
    sys.exit(main())
