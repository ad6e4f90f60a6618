"""Figures of runs in JSON: what may be written, what may be read."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from fastrnn.lm.errors import UserError

Metrics = list[dict[str, Any]]


def perplexity(loss: float) -> float:
    """exp of a loss in nats; infinite where that is beyond float64."""
    return math.exp(loss) if loss < 700 else math.inf


def finite(value: Any) -> Any:
    """A value as JSON has it, without infinities and NaN: null stands for them."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number."""
    is_one = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_one and abs(value) <= sys.float_info.max


def is_figure(value: Any) -> bool:
    """Whether a value read from JSON is what `finite` makes of a number."""
    return value is None or is_number(value)


def parse_metrics(path: Path, lines: list[bytes]) -> Metrics:
    """Lines of metrics.jsonl.

    Args:
        path: where they are from, for the message.
        lines: the first so many.

    Raises:
        UserError: one is not a JSON object of metrics.
    """
    found = []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
        except ValueError:  # not JSON, or not UTF-8
            values = None
        if not _is_line(values):
            raise UserError(f"{path}: damaged: line {number} is not a JSON object of metrics")
        found.append(values)
    return found


def _is_line(values: Any) -> bool:
    if not isinstance(values, dict) or not isinstance(values.get("split"), str):
        return False
    if not all(is_number(values.get(name)) for name in ("step", "epoch", "seconds")):
        return False
    # Validations tell how many steps a pass over the text takes.
    began = values["split"] != "valid" or min(values["step"], values["epoch"]) > 0
    return began and is_figure(values.get("loss", "missing"))
