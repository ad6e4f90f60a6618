"""What `fastrnn.report` does: all runs on one HTML page that needs nothing else."""

from __future__ import annotations

import html
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import tyro

from fastrnn.lm.checkpoint import write_file
from fastrnn.lm.errors import UserError
from fastrnn.lm.fragments import run_card, runs_table, settings_list, written
from fastrnn.lm.program import one_line
from fastrnn.lm.summary import Summary, find_runs, read_summary

# Settings that say how a run was watched, not what it was.
_ASIDE = ("log_interval", "checkpoint_interval", "device", "backend")
_UNITS = {"num_layers": "layer", "hidden_size": "unit"}


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
        UserError: there is no run, none can be read, or the page cannot be written.
    """
    if not options.runs:
        raise UserError("name one folder of runs or more")
    path = Path(options.out)
    if not path.name or path.is_dir():
        raise UserError(f"--out {options.out!r}: expected a file to write, got a folder")
    runs, damaged = _read_runs(options.runs)
    # A title or a folder's name may be no text.
    write_file(path, page(runs, options.title, damaged).encode(errors="replace"))
    print(f"{path}: {len(runs)} run{'' if len(runs) == 1 else 's'}")


def _read_runs(places: tuple[str, ...]) -> tuple[list[Summary], list[str]]:
    """The runs, and a line, which is printed too, for each that cannot be read."""
    runs, problems = [], []
    for folder in find_runs(places):
        try:
            runs.append(read_summary(folder))
        except UserError as error:
            problems.append(error)
    if not runs:
        raise problems[0]
    damaged = [f"a run is left out: {one_line(problem)}" for problem in problems]
    for line in damaged:
        print(line, file=sys.stderr)
    return runs, damaged


def page(runs: list[Summary], title: str, damaged: Sequence[str] = ()) -> str:
    """The page of some runs.

    Args:
        runs: at least one.
        title: heading of the page.
        damaged: lines that say which runs are not shown, and why.

    Returns:
        HTML that refers to nothing outside itself.
    """
    files = resources.files("fastrnn.lm") / "page"
    names = short_names([run.folder for run in runs])
    differing, shared = split_settings(runs)
    marks = {
        "TITLE": html.escape(title),
        "LEAD": "<br>".join(map(html.escape, [_lead(runs, names), *damaged])),
        "TABLE": runs_table(runs, names, differing),
        "SHARED": settings_list("Settings that all runs share", shared),
        "CARDS": "\n".join(map(run_card, runs, names)),
        "STYLE": (files / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": (files / "page.js").read_text(encoding="utf-8"),
        # In a script element only "<" could end it early.
        "DATA": json.dumps(_data(runs, names, differing)).replace("<", "\\u003c"),
    }
    text = (files / "page.html").read_text(encoding="utf-8")
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


def _lead(runs: list[Summary], names: list[str]) -> str:
    pairs = zip(runs, names, strict=True)
    tested = [(run.test, name) for run, name in pairs if _or_null(run.test) is not None]
    some = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
    if not tested:
        return some
    test, name = min(tested)
    return f"{some}; lowest test perplexity {test:.2f}, by {name}"


def _data(runs: list[Summary], names: list[str], differing: list[str]) -> dict[str, Any]:
    """What the page's script draws."""
    groups = [["", "nothing"], ["optimizer", "optimizer"], ["cell", "architecture"]]
    groups += [
        [key, key.replace("_", " ")] for key in differing if key not in ("optimizer", "cell")
    ]
    chosen = next((key for key in ("data", "optimizer", "cell") if key in differing), "")
    return {
        "differing": differing,
        "groups": groups,
        "group": chosen if len(runs) > 4 else "",
        "runs": [
            {
                "name": name,
                "settings": {key: written(run.settings.get(key)) for key, _ in groups[1:]},
                "short": {key: _label(key, run.settings.get(key)) for key in differing},
                "best": _or_null(run.best),
                "train": run.curve("train"),
                "valid": run.curve("valid"),
                "steps": {
                    split: {
                        "loss": _all_or_none(e["loss_per_step"]),
                        "gradient": _all_or_none(e["gradient_norm_per_step"]),
                    }
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
    return str(value) if isinstance(value, str) else f"{words} {written(value)}"


def _all_or_none(values: list[float | None]) -> list[float | None]:
    """Values of a line, which is not drawn if one is not finite."""
    return [] if None in values else values


def _or_null(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
