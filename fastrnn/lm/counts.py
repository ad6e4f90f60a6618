"""How large a model is, told from the shapes of its parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Counts:
    """Numbers that training changes, and products made for each token.

    Args:
        recurrent: parameters of the layers, biases included, both of torch's two.
        embedding: parameters of the embedding; 0 for one-hot input.
        output: parameters of the output layer; tied, its bias alone.
        recurrent_macs: multiply-accumulates per token with the layers' matrices, of the first
            layer's with its whole input, one-hot or not.
        output_macs: multiply-accumulates per token with the output layer's matrix, tied or not.
    """

    recurrent: int
    embedding: int
    output: int
    recurrent_macs: int
    output_macs: int


def count(shapes: dict[str, list[int]], settings: dict[str, Any]) -> Counts:
    """Parameters and products of a model.

    Args:
        shapes: of its parameters by name; a shared one once, under the embedding's name.
        settings: the run's; `init` course keeps each gate's second bias at zero, uncounted.
    """
    sizes: dict[str, int] = {}
    macs = 0
    for name, shape in shapes.items():
        part = name.partition(".")[0]
        if "bias_hh" in name and settings.get("init") == "course":
            continue
        sizes[part] = sizes.get(part, 0) + math.prod(shape)
        if part not in ("encoder", "decoder") and len(shape) == 2:
            macs += math.prod(shape)
    matrix = shapes.get("decoder.weight") or shapes["encoder.weight"]
    embedding, output = sizes.pop("encoder", 0), sizes.pop("decoder")
    return Counts(sum(sizes.values()), embedding, output, macs, math.prod(matrix))
