"""Parts of the page of runs as HTML: the table, lists of settings, cards."""

from __future__ import annotations

import html
import math
from dataclasses import fields
from typing import Any

from fastrnn.lm.counts import Counts
from fastrnn.lm.report import duration
from fastrnn.lm.summary import Summary

_PERPLEXITIES = ("test", "best", "last")


def short(count: float) -> str:
    """A count with two decimals at most and its unit: 912, 60.67k, 4.65M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f}".rstrip("0").rstrip(".") + unit
    return f"{count:g}"


def written(value: Any) -> str:
    """A setting's value."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def perplexity_text(value: float | None) -> str:
    """A perplexity, or a dash."""
    if value is None:
        return "–"
    return f"{value:,.2f}" if value < 1e6 else f"{value:.1e}"


def runs_table(runs: list[Summary], names: list[str], differing: list[str]) -> str:
    """The table of runs.

    Args:
        runs: at least one.
        names: of each.
        differing: names of the settings to show.
    """
    groups = {
        "": ["run"],
        "perplexity": ["test", "valid, best", "valid, last"],
        "settings that differ": [key.replace("_", " ") for key in differing],
        "parameters": ["recurrent", "embedding", "output"],
        "multiply-accumulates": ["recurrent", "output"],
        "time": ["in all", "an epoch"],
    }
    over, heads, edges = "", "", set()
    for text, columns in groups.items():
        if not columns:
            continue
        place = heads.count("<th")
        edges.add(place)
        over += f'<th class="group" colspan="{len(columns)}">{text}</th>'
        for k, head in enumerate(columns, place):
            kind = ' class="group"' if k == place else ""
            button = f"<button>{html.escape(head)}</button>"
            heads += f'<th data-column="{k}"{kind}>{button}</th>'
    lowest = {key: _lowest([getattr(run, key) for run in runs]) for key in _PERPLEXITIES}
    rows = [
        _row(run, name, differing, edges, lowest) for run, name in zip(runs, names, strict=True)
    ]
    return (
        f'<table id="runs">\n<thead>\n<tr>{over}</tr>\n<tr>{heads}</tr>\n</thead>\n'
        f"<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table>"
    )


def _lowest(values: list[float | None]) -> float | None:
    return min((v for v in values if v is not None and math.isfinite(v)), default=None)


def _row(
    run: Summary,
    name: str,
    differing: list[str],
    edges: set[int],
    lowest: dict[str, float | None],
) -> str:
    state = "" if run.result else ' <span class="state">unfinished</span>'
    cells = [f'<th scope="row" title="{html.escape(name)}">{html.escape(name)}{state}</th>']

    def add(text: str, value: object, *, best: bool = False, title: str = "") -> None:
        kinds = ["group"] * (len(cells) in edges) + ["best"] * best
        shown = f' class="{" ".join(kinds)}"' if kinds else ""
        about = f' title="{title}"' if title else ""
        given = "" if value is None else html.escape(str(value))
        cells.append(f'<td data-value="{given}"{shown}{about}>{html.escape(text)}</td>')

    for key in _PERPLEXITIES:
        value = getattr(run, key)
        add(perplexity_text(value), value, best=value is not None and value == lowest[key])
    for key in differing:
        value = run.settings.get(key)
        add(written(value), value)
    for field in fields(Counts):
        if run.counts is None:
            add("–", None)
        else:
            number = getattr(run.counts, field.name)
            add(short(number), number, title=f"{number:,}")
    for seconds in (run.seconds, run.seconds_an_epoch):
        add("–" if seconds is None else duration(seconds), seconds)
    return f"<tr>{''.join(cells)}</tr>"


def settings_list(title: str, settings: dict[str, Any]) -> str:
    """Settings to unfold, or nothing if there are none."""
    if not settings:
        return ""
    entries = "".join(
        f"<div><dt>{html.escape(key.replace('_', ' '))}</dt>"
        f"<dd>{html.escape(written(value))}</dd></div>"
        for key, value in settings.items()
    )
    return f"<details><summary>{title}</summary><dl>{entries}</dl></details>"


def run_card(run: Summary, name: str) -> str:
    """A run's figures, sample and settings."""
    figures = [f"test {perplexity_text(run.test)}", f"valid {perplexity_text(run.best)}"]
    if run.counts is not None:
        total = run.counts.recurrent + run.counts.embedding + run.counts.output
        figures.append(f"{short(total)} parameters")
    for split, found in run.evaluations.items():
        if "dynamic" in found:
            figures.append(f"{split}, dynamic {perplexity_text(found['dynamic']['perplexity'])}")
    sample = run.result.get("sample")
    text = f"<pre>{html.escape(sample)}</pre>" if sample else ""
    return (
        f'<article class="card"><h3>{html.escape(name)}</h3><p>{html.escape("; ".join(figures))}'
        f"</p>{text}{settings_list('All settings', run.settings)}</article>"
    )
