"""Layers of both directions against torch.nn's: a call, a sentence, a tagger, a word model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.cases import Case, Work
from benchmarks.layers import (
    CELLS_OF_TORCH,
    WORDS,
    Shape,
    assert_close,
    gradients,
    inferred,
    outputs,
    pair,
    trained,
)
from fastrnn.cells import CELLS

SHAPES = (Shape(5, 1, 64, 64, 1), Shape(30, 1, 100, 100, 1), Shape(30, 32, 100, 100, 1), WORDS)


def cases() -> Iterator[Case]:
    """Every row of this suite."""
    for shape in SHAPES:
        for cell in CELLS_OF_TORCH:
            for mode in ("train", "infer"):
                columns = {"cell": cell, "mode": mode, **shape._asdict(), "dtype": "float32"}
                build = partial(both, cell, mode, shape)
                quick = shape == SHAPES[1] and cell == "lstm"
                yield Case("directions", f"{cell}/{mode}/{shape}", build, columns, quick)


def both(cell: str, mode: str, shape: Shape) -> Work:
    """Ours against torch.nn's, of the same weights."""
    ours, peer = pair(cell, shape, bidirectional=True)
    x = torch.randn(shape.T, shape.B, shape.I)
    train = mode == "train"
    run, look = (trained(x, 2 * shape.H), gradients) if train else (inferred(x), outputs)
    passes = 3 if train else 1
    rows = 2 * CELLS[cell].gates * shape.H  # of each layer's weights
    columns = shape.I + shape.H + (shape.L - 1) * 3 * shape.H
    handed = shape.T * shape.B * (shape.I + 2 * shape.L * shape.H)
    return Work(
        {"ours": partial(run, ours), "torch.nn": partial(run, peer)},
        lambda: assert_close(look(ours, x), look(peer, x)),
        passes * shape.T * shape.B * rows * columns,
        bytes=4 * passes * (rows * (columns + 2 * shape.L) + handed),
        barriers=(2 if train else 1) * shape.L,  # each direction may have threads of its own
    )
