"""Build if need be, check, measure, and keep the rows, in a few minutes: `make gpu`."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu import correctness, library, report
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.cases import PEAKS, AttentionCase, Case, cases
from benchmarks.gpu.process import ROOT, finished
from benchmarks.gpu.protocol import heard
from benchmarks.gpu.supervise import Supervisor

Row = dict[str, Any]
# Prints what the rows were measured on.
ENVIRONMENT = """
import json, platform, torch, fastrnn
device = torch.cuda.current_device()
print(json.dumps({"gpu": torch.cuda.get_device_name(device), "torch": torch.__version__,
    "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
    "python": platform.python_version(), "fastrnn": fastrnn.__version__}))
"""


def environment(log: Path) -> Row:
    """Machine, versions and commit, for every row."""
    facts: Row = {"suite": "gpu", "commit": "unknown"}
    if git := shutil.which("git"):
        status, said = finished([git, "describe", "--always", "--dirty", "--exclude=*"], 20, log)
        facts["commit"] = said[-1] if status == 0 else "unknown"
    _, said = finished([sys.executable, "-c", ENVIRONMENT], 60, log)
    return facts | next(filter(None, map(heard, said)), {})


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
    if not options.minutes > 0 or options.rounds < 5:
        parser.error("--minutes must be positive, and --rounds at least 5")
    if options.results.is_dir():
        parser.error(f"--results must be a file, got the folder {options.results}")
    if not chosen(options.only):
        parser.error(f"--only: no case's name holds {options.only!r}")
    return options


def main() -> int:
    """Exit status 1 if anything failed, 2 if nothing could be measured."""
    options = parsed()
    budget = Budget(options.minutes * 60)
    log = options.results.with_name(f"{options.results.name}.log")
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")
    except OSError as error:
        print(f"gpu: --results: {error}", file=sys.stderr)
        return 2
    why = library.refusal(log)
    if why and why != library.NO_GPU:
        print(f"the library that is here does not do: {why}; building", flush=True)
        why = library.build(budget.share(240), log) or library.refusal(log)
    if why:
        print(f"gpu: {why}", file=sys.stderr)
        return 2
    facts = environment(log)
    print(json.dumps(facts), flush=True)
    rows: list[Row] = []

    def keep(row: Row) -> None:
        rows.append(row)
        append([row | facts], options.results)
        shown = {k: v for k, v in row.items() if k in ("case", "ratio", "errors", "said")}
        print(json.dumps(shown), flush=True)

    all_there_is = budget.left()
    after = 0.0 if options.no_tests else 0.28 * all_there_is  # for Triton's tests and the tools
    if not options.no_tests:
        keep(correctness.checks(Budget(0.3 * all_there_is), log))
    supervisor = Supervisor(budget, 20, log, ("--rounds", str(options.rounds)))
    peaks: Row = {}
    for row in supervisor.rows(PEAKS, after):
        peaks |= row
        keep(row)
    by_name = {case.name: case for case in chosen(options.only)}
    for row in supervisor.rows(list(by_name), after):
        if "precision" in row:
            case = by_name[row["case"]]
            row |= report.floor(row, case.operations, case.chain, peaks)
        keep(row)
    if not options.no_tests:
        keep(correctness.triton(budget.left() / 3, log))
        for share, tool in zip((2, 2, 1), correctness.TOOLS, strict=True):
            keep(correctness.sanitized(tool, budget.left() / share, log))
    print(report.table(rows))
    print(f"kept in {options.results}, all that was said in {log}")
    return int(any(map(report.failed, rows)))


if __name__ == "__main__":
    # Its processes are in sessions of their own: they end only where this one cleans up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
