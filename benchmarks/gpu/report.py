"""Rows with their floors, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
CONTENDERS = ("torch.nn", "auto", "cluster", "grid", "step", "triton")


def floor(row: Row, operations: float, chain: int, peaks: Row) -> dict[str, float]:
    """The least time a case can take, in ms: its products at the measured peak, or its chain of
    steps with one barrier each, whichever is longer; and which fraction of it was reached."""
    rate, barrier = peaks.get(f"{row['precision']}_tflops"), peaks.get("cluster_8_barrier_us")
    parts = []
    if rate:
        parts.append(operations / rate * 1e-9)
    if barrier:
        parts.append(chain * barrier * 1e-3)
    if not parts:
        return {}
    found = {"floor_ms": float(f"{max(parts):.4g}")}
    if "best" in row:
        found["floor_fraction"] = round(max(parts) / row[row["best"]]["p50"], 3)
    return found


def failed(row: Row) -> bool:
    """Whether something went wrong, as against refused or left out."""
    return bool(row.get("errors"))


def _cell(row: Row, name: str) -> str:
    if isinstance(row.get(name), dict):
        return f"{row[name]['p50']:.3f}"
    if name in row.get("errors", {}):
        return "failed"
    return "-"


def table(rows: Sequence[Row]) -> str:
    """Medians in ms, and what went wrong."""
    heads = ("case", *CONTENDERS, "ratio", "us/step", "of floor")
    body = []
    notes = []
    for row in rows:
        notes += [f"{row['case']}: {who}: {why}" for who, why in row.get("errors", {}).items()]
        if "skipped" in row or "precision" not in row:
            continue
        ratio = row.get("ratio", {}).get("torch.nn")
        of_floor = row.get("floor_fraction")
        steps = row["T"] * row["L"] if "T" in row else 0  # attention has none
        body.append(
            (
                row["case"],
                *(_cell(row, name) for name in CONTENDERS),
                f"{ratio:.2f}x" if ratio else "-",
                f"{row[row['best']]['p50'] * 1e3 / steps:.2f}" if "best" in row and steps else "-",
                f"{of_floor:.0%}" if of_floor else "-",
            )
        )
    lines = [heads, *body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    text = [
        "  ".join(word.ljust(w) if i == 0 else word.rjust(w) for i, (word, w) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    skipped: dict[str, list[str]] = {}
    for row in rows:
        if "skipped" in row:
            skipped.setdefault(row["skipped"], []).append(row["case"])
    for why, names in skipped.items():
        notes.append(f"left out: {len(names)}, from {names[0]} on: {why}")
    return "\n".join([*text, *notes])
