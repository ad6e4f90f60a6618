"""Rows on disk: JSON lines that are only ever added to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from benchmarks.cases import Row
from benchmarks.machine import ROOT, git

FOLDER = ROOT / "benchmarks" / "results"
FULL, QUICK = FOLDER / "cpu.jsonl", FOLDER / "quick.jsonl"  # the second is not committed
# Main cases on other processors, by what those are.
OTHERS = {
    "Zen 4, AVX-512 in halves": FOLDER / "cpu_zen4.jsonl",
    "Zen 3, AVX2": FOLDER / "cpu_avx2.jsonl",
}


def append(rows: Iterable[Row], path: Path) -> None:
    """Add rows to a file, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[Row]:
    """Every row of a file, oldest first.

    Raises:
        ValueError: a line is no row.
    """
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        problem = wrong_with(row)
        if problem:
            raise ValueError(f"{path}:{number}: {problem}")
        rows.append(row)
    return rows


def key(row: Row) -> tuple[str, str]:
    """What rows of different runs have in common."""
    return row["case"], row["malloc"]


def newest(rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """The last row of each case and malloc setting, of the machine that the last row is from."""
    rows = list(rows)
    here = [row for row in rows if row["cpu"] == rows[-1]["cpu"]]
    return {key(row): row for row in here}


def wrong_with(row: object) -> str | None:
    """What a row lacks, or None."""
    if not isinstance(row, dict):
        return "a row must be an object"
    strings = ("case", "suite", "malloc", "commit", "date", "torch", "python", "fastrnn")
    for name in strings:
        if not isinstance(row.get(name), str):
            return f"{name} must be a string, got {row.get(name)!r}"
    if "error" in row:
        return None if isinstance(row["error"], str) else "error must be a string"
    times = row.get("times")
    if not isinstance(times, dict) or "ours" not in times:
        return f"times must be an object with 'ours', got {times!r}"
    for name, found in times.items():
        numbers = [found.get(p) for p in ("p20", "p50", "p80")]
        if not all(isinstance(n, int | float) and math.isfinite(n) and n > 0 for n in numbers):
            return f"times[{name!r}] must have positive p20, p50, p80, got {found!r}"
        if numbers != sorted(numbers):
            return f"times[{name!r}] must ascend, got {found!r}"
    if set(row.get("ratio", {})) != set(times) - {"ours"}:
        return f"ratio must name {sorted(set(times) - {'ours'})}, got {row.get('ratio')!r}"
    return None


def find(name: str, path: Path = FULL) -> list[Row]:
    """The rows of a file, or of a commit within the results.

    Args:
        name: a file's path; or a commit, a branch or a tag.
        path: where commits' rows are.

    Raises:
        ValueError: no such rows.
    """
    if Path(name).is_file():
        return read(Path(name))
    commit = git("rev-parse", "--short", "--quiet", "--verify", f"{name}^{{commit}}") or name
    rows = [row for row in read(path) if _same(row["commit"], commit)] if path.exists() else []
    if not rows:
        raise ValueError(f"benchmarks: {name!r} is no file and no commit with rows in {path}")
    return rows


def _same(a: str, b: str) -> bool:
    """Abbreviated to whatever length."""
    return min(len(a), len(b)) >= 4 and (a.startswith(b) or b.startswith(a))
