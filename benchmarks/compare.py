"""What got slower between two sets of rows, and by how much beyond noise.

    python -m benchmarks.compare A B

A and B are files of rows, or commits that have rows in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks import results
from benchmarks.cases import Row

# Repeated runs of one build were seen to differ so much beyond what their rounds show: by where
# memory happens to lie.
BETWEEN_RUNS = 0.05
SIGMAS = 3.0
VERDICTS = ("slower", "faster", "same", "unclear")
# Threads of a virtual machine meet in 0.03 or in 0.28 microseconds, as its host places them; all
# short steps then take up to 30% more, torch.nn's too.
OTHER_PLACE = 2.0


@dataclass(frozen=True)
class Change:
    """One case and malloc setting, before and after.

    Args:
        case: the row's name.
        malloc: its setting.
        before: milliseconds in A.
        after: milliseconds in B.
        factor: time after over time before, or the same in torch.nn's time beside it, whichever is
            nearer to 1: the first shows a slower machine, too, the second a faster torch.nn.
        noise: the part by which the factor may differ from 1 with nothing changed.
        moved: the machine's threads were placed otherwise: the factor says nothing.
    """

    case: str
    malloc: str
    before: float
    after: float
    factor: float
    noise: float
    moved: bool

    @property
    def verdict(self) -> str:
        """ "slower" or "faster" beyond noise, else "same"; "unclear" where the machine changed."""
        if self.moved:
            return "unclear"
        if abs(math.log(self.factor)) <= math.log1p(self.noise):
            return "same"
        return "slower" if self.factor > 1 else "faster"


def spread(times: Row) -> float:
    """The relative standard error of a median, from the percentiles beside it.

    Between p20 and p80 of a normal distribution lie 1.683 standard deviations; a median of n
    varies by 1.253 standard deviations over the root of n.
    """
    deviation = (times["p80"] - times["p20"]) / 1.683 / times["p50"]
    return float(1.253 * deviation / math.sqrt(times.get("rounds", 5)))


def change(before: list[Row], after: list[Row]) -> Change:
    """Of the same case, from one row or more on each side.

    Args:
        before: rows of A.
        after: rows of B.
    """
    sides = (before, after)
    times = {}
    for name in ("ours", "torch.nn"):
        if all(name in row["times"] for row in before + after):
            times[name] = [
                statistics.median(row["times"][name]["p50"] for row in rows) for rows in sides
            ]
    raw = math.log(times["ours"][1] / times["ours"][0])
    peers = math.log(times["torch.nn"][1] / times["torch.nn"][0]) if "torch.nn" in times else 0.0
    least = min(raw, raw - peers, key=abs) if raw * (raw - peers) > 0 else 0.0
    errors = [
        statistics.fmean(spread(row["times"]["ours"]) ** 2 for row in rows) / len(rows)
        for rows in sides
    ]
    meets = [
        statistics.median(row["floor"]["barrier_us"] for row in rows)
        for rows in sides
        if all("barrier_us" in row.get("floor", {}) for row in rows)
    ]
    moved = len(meets) == 2 and max(meets) > OTHER_PLACE * min(meets)
    return Change(
        *results.key(before[0]),
        *times["ours"],
        math.exp(least),
        SIGMAS * math.sqrt(sum(errors)) + BETWEEN_RUNS,
        moved,
    )


def compare(before: Iterable[Row], after: Iterable[Row]) -> tuple[list[Change], list[str]]:
    """Every case that both sets have.

    Args:
        before: rows of A.
        after: rows of B.

    Returns:
        The changes, worst first; and what could not be compared, in words.
    """
    sides: list[dict[tuple[str, str], list[Row]]] = []
    for rows in (before, after):
        by_key: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in rows:
            by_key[results.key(row)].append(row)
        sides.append(by_key)
    a, b = sides
    found, notes = [], []
    for name, one, other in (("A", a, b), ("B", b, a)):
        alone = [f"{case} ({malloc})" for case, malloc in one if (case, malloc) not in other]
        if alone:
            notes.append(f"only in {name}: {len(alone)} rows, {alone[0]} the first")
    for key in (key for key in a if key in b):
        machines = {row.get("cpu") for row in a[key] + b[key]} - {None}
        broken = [row["error"] for row in a[key] + b[key] if "error" in row]
        if len(machines) > 1:
            notes.append(f"{key[0]} ({key[1]}): on different processors, {sorted(machines)}")
        elif broken:
            notes.append(f"{key[0]} ({key[1]}): {broken[0]}")
        else:
            found.append(change(a[key], b[key]))
    return sorted(found, key=lambda c: -c.factor), notes


def main(arguments: list[str] | None = None) -> int:
    """Print what changed.

    Returns:
        0; 1 if anything got slower beyond noise; 2 on a mistake in the command line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("a", metavar="A", help="file of rows, or commit")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--all", action="store_true", help="show what did not change, too")
    options = parser.parse_args(arguments)
    try:
        changes, notes = compare(results.find(options.a), results.find(options.b))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for c in changes:
        if options.all or c.verdict in VERDICTS[:2]:
            print(
                f"{c.verdict:7} {c.factor - 1:+7.1%} (noise {c.noise:.1%})  "
                f"{c.before:.4g} -> {c.after:.4g} ms  {c.case} ({c.malloc})"
            )
    print(*notes, sep="\n", end="\n" if notes else "")
    counts = {v: sum(c.verdict == v for c in changes) for v in VERDICTS}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 1 if counts["slower"] else 0


if __name__ == "__main__":
    sys.exit(main())
