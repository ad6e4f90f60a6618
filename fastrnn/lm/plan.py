"""What a sweep is to try: its TOML file, read and checked before anything is trained."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrnn._suggest import suggest
from fastrnn.lm.command_line import parse
from fastrnn.lm.config import Config
from fastrnn.lm.errors import UserError
from fastrnn.lm.settings import option_names, read_toml, to_toml, typed

Settings = dict[str, Any]  # option names, with underscores, and values
METHODS = ("grid", "random", "tpe")
# The sweep's own business, not the file's.
_REFUSED = ("out", "resume", "force", "presets", "debug")
_KEYS = {"out": str, "method": str, "trials": int, "seed": int, "storage": str}
_MOST = 10_000  # points of a grid


@dataclass(frozen=True)
class Plan:
    """A sweep.

    Args:
        out: folder of its runs.
        method: "grid" tries everything, "random" draws, "tpe" draws near what did well.
        trials: runs to make, of "random" and "tpe".
        seed: of the draws.
        storage: database URL that workers share, or None: a file in `out`.
        settings: what all runs have in common.
        search: for each option what to try: a list, or a table of low, high, and step or log.
    """

    out: Path
    method: str
    trials: int
    seed: int
    storage: str | None
    settings: Settings
    search: dict[str, Any]

    def points(self) -> list[Settings]:
        """What "grid" tries."""
        values = itertools.product(*self.search.values())
        return [dict(zip(self.search, each, strict=True)) for each in values]

    def identity(self) -> str:
        """What may not change while a sweep is under way, as text."""
        return json.dumps([self.method, self.settings, self.search], sort_keys=True)


def options_of(settings: Settings, folder: Path | None = None) -> Config:
    """The options of a run.

    Args:
        settings: option names and values.
        folder: of the run, which is continued if it has begun.

    Raises:
        UserError: they do not fit.
    """
    arguments = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments.append(f"--{flag}={value}")
    if folder is not None:
        arguments += [f"--out={folder}", "--resume"]
    return parse(arguments, by_hand=False)  # of a search, some points make no use of some options


def read_plan(path: Path) -> Plan:
    """Read a sweep's file, and see that every value in it is one that a run can have.

    Args:
        path: TOML file; see README.md.

    Raises:
        UserError: it cannot be read, or something in it is unknown, of a wrong type or impossible.
    """
    content = read_toml(path)
    try:
        plan = _plan(content, path.stem)
        _check_runs(plan)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return plan


def _plan(content: Settings, name: str) -> Plan:
    known = [*_KEYS, "settings", "search"]
    for key, value in content.items():
        if key not in known:
            raise UserError(f"unknown key {key!r}{suggest(key, known)}")
        kind: Any = _KEYS.get(key, dict)
        if type(value) is not kind:
            raise UserError(f"{key}: expected {kind.__name__}, got {value!r}")
    method, trials = content.get("method", "grid"), content.get("trials", 20)
    if method not in METHODS:
        raise UserError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if trials < 1:
        raise UserError(f"trials must be at least 1, got {trials}")
    settings = _named(content.get("settings", {}), "settings")
    search = _named(content.get("search", {}), "search")
    if not search:
        raise UserError("[search] must name an option to try values of")
    if both := sorted(settings.keys() & search.keys()):
        raise UserError(f"{both[0]} is in both [settings] and [search]")
    for key, value in settings.items():
        if type(value) not in (str, int, float, bool):
            raise UserError(f"settings.{key}: expected one value, got {value!r}")
    search = {key: _range(key, value, method) for key, value in search.items()}
    out = content.get("out", f"runs/{name}")
    if not out:
        raise UserError("out: expected the path of a folder, got ''")
    seed = content.get("seed", 1)
    return Plan(Path(out), method, trials, seed, content.get("storage"), settings, search)


def _named(table: Settings, where: str) -> Settings:
    known = [name for name in option_names() if name not in _REFUSED]
    found = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            raise UserError(f"{where}: unknown option {key!r}{suggest(name, known)}")
        found[name] = value
    return found


def _range(name: str, value: Any, method: str) -> Any:
    """What to try of an option, its ends and step of the option's type."""
    where = f"search.{name}"
    if isinstance(value, list):
        if not value or any(type(each) not in (str, int, float, bool) for each in value):
            raise UserError(f"{where}: expected a list of one value or more, got {value!r}")
        return value
    if not isinstance(value, dict) or not {"low", "high"} <= value.keys():
        raise UserError(f"{where}: expected a list, or a table with low and high, got {value!r}")
    if method == "grid":
        raise UserError(f"{where}: method grid needs a list of values, got a range")
    for key, each in value.items():
        kinds: tuple[type, ...] = (bool,) if key == "log" else (int, float)
        if key not in ("low", "high", "step", "log"):
            raise UserError(f"{where}: expected low, high, step and log only, got {key!r}")
        if type(each) not in kinds:
            raise UserError(f"{where}.{key}: expected a {kinds[-1].__name__}, got {each!r}")
    low, high, log, step = value["low"], value["high"], value.get("log"), value.get("step")
    if not low <= high or (log and low <= 0) or not (step is None or 0 < step < math.inf):
        raise UserError(f"{where}: no such range: {value!r}")
    if log and step is not None:
        raise UserError(f"{where}: log and step do not go together")
    # An integer would have integers drawn alone.
    return {k: v if k == "log" else typed(name, v, f"{where}.{k}") for k, v in value.items()}


def _check_runs(plan: Plan) -> None:
    """See that the runs can be made: all points of a grid, otherwise each value by itself."""
    if plan.method == "grid":
        points = plan.points()
        if len(points) > _MOST:
            raise UserError(f"the grid has {len(points)} points, more than {_MOST}")
    else:
        ends = {
            key: v if isinstance(v, list) else [v["low"], v["high"]]
            for key, v in plan.search.items()
        }
        first = {key: values[0] for key, values in ends.items()}
        points = [first | {key: value} for key, values in ends.items() for value in values]
    runs: set[str] = set()
    for point in points:
        try:
            run = to_toml(options_of(plan.settings | point))
        except UserError as error:
            raise UserError(f"with {written(point)}: {error}") from error
        if run in runs and plan.method == "grid":
            raise UserError(f"search: expected runs that differ, got this twice: {written(point)}")
        runs.add(run)


def written(point: Settings) -> str:
    """A point in one line."""
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in point.items()
    )
