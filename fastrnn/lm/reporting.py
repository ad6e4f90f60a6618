"""What `fastrnn.report` does: all runs on one HTML page that needs nothing else."""

from __future__ import annotations

import html
import json
import math
import os
import re
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import tyro

from fastrnn.lm.checkpoint import write_file
from fastrnn.lm.errors import UserError
from fastrnn.lm.report import duration
from fastrnn.lm.summary import Counts, Summary, find_runs, read_summary

# Settings that say how a run was watched, not what it was.
_ASIDE = ("log_interval", "checkpoint_interval", "device", "backend")
_UNITS = {"num_layers": "layer", "hidden_size": "unit"}
_PERPLEXITIES = ("test", "best", "last")


@dataclass
class ReportingOptions:
    """Put runs side by side on one HTML page: settings, sizes, curves, perplexities, samples."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of runs, or folders that hold such."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE.html")] = "report.html"
    """Where to write the page."""
    title: str = "Training runs"
    """Heading of the page."""
    debug: bool = False
    """Show the traceback of an error."""


def write_report(options: ReportingOptions) -> None:
    """Write the page of some runs.

    Args:
        options: see `ReportingOptions`.

    Raises:
        UserError: there is no run, one cannot be read, or the page cannot be written.
    """
    if not options.runs:
        raise UserError("name one folder of runs or more")
    runs = [read_summary(folder) for folder in find_runs(options.runs)]
    path = Path(options.out)
    write_file(path, page(runs, options.title).encode())
    print(f"{path}: {len(runs)} run{'' if len(runs) == 1 else 's'}")


def page(runs: list[Summary], title: str) -> str:
    """The page of some runs.

    Args:
        runs: at least one.
        title: heading of the page.

    Returns:
        HTML that refers to nothing outside itself.
    """
    files = resources.files("fastrnn.lm") / "page"
    names = short_names([run.folder for run in runs])
    differing, shared = split_settings(runs)
    marks = {
        "TITLE": html.escape(title),
        "LEAD": html.escape(_lead(runs, names)),
        "TABLE": _table(runs, names, differing),
        "SHARED": _list("Settings that all runs share", shared),
        "CARDS": "\n".join(map(_card, runs, names)),
        "STYLE": (files / "page.css").read_text(),
        "SCRIPT": (files / "page.js").read_text(),
        # In a script element only "<" could end it early.
        "DATA": json.dumps(_data(runs, names, differing)).replace("<", "\\u003c"),
    }
    text = (files / "page.html").read_text()
    return re.sub(r"<!--([A-Z]+)-->|/\*([A-Z]+)\*/", lambda m: marks[m[1] or m[2]], text)


def short_names(folders: list[Path]) -> list[str]:
    """Names of runs: their folders', without what all paths have in common."""
    whole = [Path(os.path.abspath(folder)) for folder in folders]
    common = Path(os.path.commonpath([folder.parent for folder in whole]))
    return [str(folder.relative_to(common)) for folder in whole]


def split_settings(runs: list[Summary]) -> tuple[list[str], dict[str, Any]]:
    """Names of the settings in which runs differ, and the others with their value."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    values = {key: [run.settings.get(key) for run in runs] for key in keys}
    differing = [key for key, each in values.items() if any(v != each[0] for v in each)]
    shared = {key: each[0] for key, each in values.items() if key not in differing}
    return [key for key in differing if key not in _ASIDE], shared


def short(count: float) -> str:
    """A count with two decimals at most and its unit: 912, 60.67k, 4.65M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f}".rstrip("0").rstrip(".") + unit
    return f"{count:g}"


def _lead(runs: list[Summary], names: list[str]) -> str:
    tested = [(run.test, name) for run, name in zip(runs, names, strict=True) if run.test]
    some = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
    if not tested:
        return some
    test, name = min(tested)
    return f"{some}; lowest test perplexity {test:.2f}, by {name}"


def _written(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _perplexity(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.2f}" if value < 1e6 else f"{value:.1e}"


def _table(runs: list[Summary], names: list[str], differing: list[str]) -> str:
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
        add(_perplexity(value), value, best=value is not None and value == lowest[key])
    for key in differing:
        value = run.settings.get(key)
        add(_written(value), value)
    for field in fields(Counts):
        if run.counts is None:
            add("–", None)
        else:
            number = getattr(run.counts, field.name)
            add(short(number), number, title=f"{number:,}")
    for seconds in (run.seconds, run.seconds_an_epoch):
        add("–" if seconds is None else duration(seconds), seconds)
    return f"<tr>{''.join(cells)}</tr>"


def _list(title: str, settings: dict[str, Any]) -> str:
    if not settings:
        return ""
    entries = "".join(
        f"<div><dt>{html.escape(key.replace('_', ' '))}</dt>"
        f"<dd>{html.escape(_written(value))}</dd></div>"
        for key, value in settings.items()
    )
    return f"<details><summary>{title}</summary><dl>{entries}</dl></details>"


def _card(run: Summary, name: str) -> str:
    figures = [f"test {_perplexity(run.test)}", f"valid {_perplexity(run.best)}"]
    if run.counts is not None:
        total = run.counts.recurrent + run.counts.embedding + run.counts.output
        figures.append(f"{short(total)} parameters")
    for split, found in run.evaluations.items():
        if "dynamic" in found:
            figures.append(f"{split}, dynamic {_perplexity(found['dynamic']['perplexity'])}")
    sample = run.result.get("sample")
    text = f"<pre>{html.escape(sample)}</pre>" if sample else ""
    return (
        f'<article class="card"><h3>{html.escape(name)}</h3><p>{html.escape("; ".join(figures))}'
        f"</p>{text}{_list('All settings', run.settings)}</article>"
    )


def _data(runs: list[Summary], names: list[str], differing: list[str]) -> dict[str, Any]:
    """What the page's script draws."""
    groups = [["", "nothing"], ["optimizer", "optimizer"], ["cell", "architecture"]]
    groups += [
        [key, key.replace("_", " ")] for key in differing if key not in ("optimizer", "cell")
    ]
    chosen = next((key for key in ("optimizer", "cell") if key in differing), "")
    return {
        "differing": differing,
        "groups": groups,
        "group": chosen if len(runs) > 4 else "",
        "runs": [
            {
                "name": name,
                "settings": {key: _written(run.settings.get(key)) for key, _ in groups[1:]},
                "short": {key: _label(key, run.settings.get(key)) for key in differing},
                "best": _or_null(run.best),
                "train": run.curve("train"),
                "valid": run.curve("valid"),
                "steps": {
                    split: {"loss": e["loss_per_step"], "gradient": e["gradient_norm_per_step"]}
                    for split, e in run.evaluations.items()
                    if "loss_per_step" in e
                },
            }
            for run, name in zip(runs, names, strict=True)
        ],
    }


def _label(key: str, value: Any) -> str:
    """A setting in a word or two."""
    words = key.replace("_", " ")
    if value is None:
        return ""
    if isinstance(value, bool):
        return words if value else f"not {words}"
    if key in _UNITS:
        return f"{value} {_UNITS[key]}{'' if value == 1 else 's'}"
    return str(value) if isinstance(value, str) else f"{words} {_written(value)}"


def _or_null(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
