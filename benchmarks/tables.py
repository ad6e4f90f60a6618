"""Rows as tables of text."""

from __future__ import annotations

from benchmarks.cases import Row

Rows = list[Row]
Table = list[list[str]]  # lines of cells, the first the heads


def table(rows: Rows) -> Table:
    """What rows of a kind have, a line each; two columns for every peer that any of them has."""
    peers = list(dict.fromkeys(name for row in rows for name in row.get("ratio", {})))
    heads = ["case", "malloc", "p20", "p50", "p80"]
    for peer in peers:
        heads += [peer, "ratio"]
    heads += ["floor", "of it", "MB moved", "MB held"]
    tokens = any("tokens_per_s" in row for row in rows)
    heads += ["tokens/s"] * tokens
    lines = [heads]
    for row in rows:
        start = [f"`{row['case']}`", row["malloc"]]
        if "error" in row:
            lines.append(start + [row["error"]] + [""] * (len(heads) - 3))
            continue
        times, floor = row["times"], row.get("floor")
        line = [_ms(times["ours"][p]) for p in ("p20", "p50", "p80")]
        if row["disturbed"]:
            line[1] += " (disturbed)"
        for peer in peers:
            seen = peer in times
            line += [_ms(times[peer]["p50"]), f"{row['ratio'][peer]:.2f}"] if seen else ["", ""]
        line += [_ms(floor["ms"]), f"{floor['fraction']:.0%}"] if floor else ["", ""]
        line += [_mb(row.get("bytes")), _held(row)]
        if tokens:
            line.append(f"{row['tokens_per_s']['ours']:,}")
        lines.append(start + line)
    return lines


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _mb(size: float | None) -> str:
    return "" if size is None else f"{size / 1e6:.3g}"


def _held(row: Row) -> str:
    """Peak memory of ours, and of each peer."""
    held = row.get("memory", {})
    others = [_mb(held[name]) for name in row["ratio"] if held.get(name) is not None]
    return _mb(held.get("ours")) + (f" ({', '.join(others)})" if others else "")
