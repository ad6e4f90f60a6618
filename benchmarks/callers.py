"""Layers that several threads of a process call at once, as a server's do, against torch.nn's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial

import torch
from torch import nn

from benchmarks.cases import Case, Work
from benchmarks.layers import (
    WORDS,
    Shape,
    assert_close,
    forward_multiply_adds,
    inferred,
    outputs,
    pair,
)

SHAPES = (Shape(100, 1, 256, 256, 2), WORDS)
CALLERS = (1, 2, 4)
CELLS = ("lstm", "gru")
CALLS = 5  # of each caller in a round


def cases() -> Iterator[Case]:
    """Every row of this suite."""
    for shape in SHAPES:
        for cell in CELLS:
            for callers in CALLERS:
                columns = {"cell": cell, "mode": "infer", **shape._asdict(), "callers": callers}
                build = partial(at_once, cell, shape, callers)
                yield Case("callers", f"{cell}/{shape}/{callers}", build, columns)


def at_once(cell: str, shape: Shape, callers: int) -> Work:
    """Every caller has layers of its own and calls them a few times."""
    ours, peer = pair(cell, shape)
    x = torch.randn(shape.T, shape.B, shape.I)
    call = inferred(x)
    pool = ThreadPoolExecutor(callers)

    def calls(module: nn.Module) -> None:
        for _ in range(CALLS):
            call(module)

    def run(modules: list[nn.Module]) -> None:
        list(pool.map(calls, modules))

    def copies(module: nn.Module) -> list[nn.Module]:
        return [deepcopy(module) for _ in range(callers)]

    return Work(
        {"ours": partial(run, copies(ours)), "torch.nn": partial(run, copies(peer))},
        lambda: assert_close(outputs(ours, x), outputs(peer, x)),
        callers * CALLS * forward_multiply_adds(cell, shape),
    )
