"""How time grows with each size of a recurrent layer, on one thread and on two."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.cases import Case
from benchmarks.layers import Shape, forward_multiply_adds, layers

START = Shape(35, 20, 200, 200, 1)
AXES = {
    "T": (1, 4, 16, 64, 256, 1024, 4096),
    "B": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    "H": (16, 32, 64, 128, 256, 512, 1024, 2048),
    "L": (1, 2, 4, 8),
}
THREADS = (1, 2)
SLOW = 1e10  # multiply-adds forward beyond which one thread is left out: seconds a round


def cases() -> Iterator[Case]:
    """Every row of this suite: an LSTM's training step, buffers kept so that the slope is the
    kernels', not the page faults'."""
    for axis, values in AXES.items():
        for value in values:
            for threads in THREADS:
                work = forward_multiply_adds("lstm", shape_at(axis, value))
                if threads <= (os.cpu_count() or 1) and (threads > 1 or work < SLOW):
                    yield _case(axis, value, threads)


def shape_at(axis: str, value: int) -> Shape:
    """The starting shape with one size changed; the input is as wide as the layer."""
    return START._replace(**({"H": value, "I": value} if axis == "H" else {axis: value}))


def _case(axis: str, value: int, threads: int) -> Case:
    shape = shape_at(axis, value)
    return Case(
        "growth",
        f"lstm/{axis}={value}/threads={threads}",
        partial(layers, "lstm", "train", shape),
        {"cell": "lstm", "mode": "train", **shape._asdict(), "axis": axis, "value": value},
        threads=threads,
        malloc=("kept",),
        seconds=0.25,
        rounds=3,
        memory=False,
    )


def slope(values: Sequence[float], times: Sequence[float]) -> float:
    """The power of a size that time grows with: least squares on logarithms, over the upper half
    of the points, where what is constant no longer counts.

    Args:
        values: sizes, ascending; two at least.
        times: of each.
    """
    half = max(2, (len(values) + 1) // 2)
    x, y = ([math.log(v) for v in list(found)[-half:]] for found in (values, times))
    mean_x, mean_y = sum(x) / half, sum(y) / half
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)
