"""What a run came to, read from its folder without building its model."""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from fastrnn.lm.counts import Counts, count
from fastrnn.lm.errors import UserError
from fastrnn.lm.figures import Metrics, is_figure, parse_metrics, perplexity
from fastrnn.lm.run import BEST, CHECKPOINTS, CONFIG, EVALUATIONS, LAST, METRICS, RESULT


@dataclass(frozen=True)
class Summary:
    """A run as its folder tells it.

    Args:
        folder: of the run.
        settings: its config.toml.
        metrics: its metrics.jsonl.
        result: its result.json, {} while it has not finished.
        shapes: of its model's parameters, {} before its first checkpoint.
        evaluations: what `fastrnn.evaluate` found of its best model, by split.
    """

    folder: Path
    settings: dict[str, Any]
    metrics: Metrics
    result: dict[str, Any]
    shapes: dict[str, list[int]]
    evaluations: dict[str, dict[str, Any]]

    @cached_property
    def counts(self) -> Counts | None:
        """Parameters and products, or None before the first checkpoint."""
        return count(self.shapes, self.settings) if self.shapes else None

    @property
    def seconds(self) -> float | None:
        """Time trained, validation included."""
        return self.metrics[-1]["seconds"] if self.metrics else None

    @property
    def seconds_an_epoch(self) -> float | None:
        """Time of a pass over the text, with its validation, so far on average."""
        ends = [m for m in self.metrics if m["split"] == "valid"]
        return ends[-1]["seconds"] / ends[-1]["epoch"] if ends else None

    @property
    def best_loss(self) -> float | None:
        """The lowest finite validation loss."""
        losses = [m["loss"] for m in self.metrics if m["split"] == "valid"]
        return min((loss for loss in losses if loss is not None), default=None)

    @property
    def best(self) -> float | None:
        """The lowest validation perplexity."""
        return min(self._validations, default=None)

    @property
    def last(self) -> float | None:
        """The validation perplexity at the end."""
        return self._validations[-1] if self._validations else None

    @property
    def test(self) -> float | None:
        """The best model's test perplexity, or None while the run has not finished."""
        found: float | None = self.result.get("test_perplexity")
        return math.inf if self.result and found is None else found

    @property
    def _validations(self) -> list[float]:
        lines = [m for m in self.metrics if m["split"] == "valid"]
        return [math.inf if m["loss"] is None else perplexity(m["loss"]) for m in lines]

    def curve(self, split: str) -> dict[str, list[float]]:
        """A learning curve.

        Args:
            split: "train" or "valid".

        Returns:
            Lists `epoch` (passes made, with fractions), `seconds` and `ppl`, of equal length;
            losses that are not finite are left out.
        """
        lines = [m for m in self.metrics if m["split"] == split and m["loss"] is not None]
        steps = [m["step"] for m in lines]
        return {
            "epoch": [round(float(e), 4) for e in self._epochs(steps)],
            "seconds": [m["seconds"] for m in lines],
            "ppl": [float(f"{min(perplexity(m['loss']), 1e300):.6g}") for m in lines],
        }

    def _epochs(self, steps: list[int]) -> Any:
        """Passes over the text after so many steps, told from the validations."""
        ends = {0: 0}
        for m in self.metrics:
            if m["split"] == "valid":
                ends[m["epoch"]] = m["step"]
        known = sorted(ends)
        # Steps after the last validation: at the pace of the epoch before.
        pace = ends[known[-1]] / known[-1] if known[-1] else math.inf
        beyond = [max(0.0, s - ends[known[-1]]) / pace for s in steps]
        return np.interp(steps, [ends[e] for e in known], known) + np.array(beyond)


def read_summary(folder: Path) -> Summary:
    """Read a run's folder; the run may be under way.

    Args:
        folder: of the run.

    Raises:
        UserError: it holds no run, or a file is damaged.
    """
    result = folder / RESULT
    return Summary(
        folder,
        _toml(folder / CONFIG),
        _metrics(folder / METRICS),
        _checked(result, _json(result), _is_result) if result.is_file() else {},
        _shapes(folder),
        _evaluations(folder),
    )


def find_runs(places: tuple[str, ...]) -> list[Path]:
    """Folders of runs: those given, and those inside them.

    Args:
        places: folders of runs, or folders that hold such anywhere inside.

    Returns:
        Each once, in order.

    Raises:
        UserError: a place does not exist or holds no run.
    """
    found: dict[Path, None] = {}
    for place in places:
        folder = Path(place)
        if not folder.is_dir():
            raise UserError(f"{place}: no such folder")
        inside = sorted(_runs_in(folder))
        if not inside:
            raise UserError(f"{place}: holds no run: there is no {CONFIG} in it")
        found |= dict.fromkeys(inside)
    return list(found)


def _runs_in(place: Path) -> Iterator[Path]:
    """Folders of runs; what goes away while it is looked through, is passed over."""
    for folder, inside, files in os.walk(place):
        if CONFIG in files:
            yield Path(folder)
            # Its checkpoints are no place to look in, and may be changing their names.
            inside[:] = [name for name in inside if name not in CHECKPOINTS]


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(path))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path))
    except ValueError as error:
        raise UserError(f"{path}: damaged: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged: not a JSON object")
    return found


def _metrics(path: Path) -> Metrics:
    if not path.is_file():
        return []
    # A last line without its end is being written.
    return parse_metrics(path, _bytes(path).split(b"\n")[:-1])


def _shapes(folder: Path) -> dict[str, list[int]]:
    # While a checkpoint is being replaced, the one before may be all that has a name.
    for name in (BEST, f"{BEST}.old", LAST, f"{LAST}.old"):
        path = folder / name / "model.safetensors"
        try:
            with safe_open(path, "np") as file:
                names = list(file.keys())
                return {name: list(file.get_slice(name).get_shape()) for name in names}
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: the checkpoint is truncated or damaged") from error
    return {}


def _evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for split, name in EVALUATIONS.items():
        if (folder / name).is_file():
            content = _checked(folder / name, _json(folder / name), _is_evaluation)
            found[split] = content["runs"][0]  # the run in whose folder it is
    return found


def _checked(
    path: Path, content: dict[str, Any], fits: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    if not fits(content):
        raise UserError(f"{path}: damaged: not what a run writes there")
    return content


def _is_result(content: dict[str, Any]) -> bool:
    test = content.get("test_perplexity")
    # Infinity is no JSON, but was written once.
    return (is_figure(test) or test == math.inf) and isinstance(content.get("sample", ""), str)


def _is_evaluation(content: dict[str, Any]) -> bool:
    runs = content.get("runs")
    own = runs[0] if isinstance(runs, list) and runs else None
    if not isinstance(own, dict) or not is_figure(own.get("perplexity", "missing")):
        return False
    dynamic = own.get("dynamic", {"perplexity": None})
    # Both, or neither for a run on sentences.
    steps = [own.get(f"{name}_per_step") for name in ("loss", "gradient_norm")]
    return (
        isinstance(dynamic, dict)
        and is_figure(dynamic.get("perplexity", "missing"))
        and (steps == [None, None] or all(map(_are_figures, steps)))
    )


def _are_figures(values: Any) -> bool:
    return isinstance(values, list) and all(map(is_figure, values))
