"""Output layer and cross entropy, with gradients, against torch's operators."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch.nn import functional as F

import fastrnn
from benchmarks.cases import Case, Work
from benchmarks.layers import assert_close

SHAPES = ((700, 200, 10_000), (700, 650, 10_000))  # rows, hidden size, classes


def cases() -> Iterator[Case]:
    """Every row of this suite."""
    for rows, hidden, classes in SHAPES:
        columns = {"mode": "train", "rows": rows, "H": hidden, "V": classes}
        build = partial(loss, rows, hidden, classes)
        label = f"train/{rows}x{hidden}x{classes}"
        yield Case("loss", label, build, columns, quick=hidden == 200)


def loss(rows: int, hidden: int, classes: int) -> Work:
    """One forward and backward pass over rows [rows, hidden]."""
    x = torch.randn(rows, hidden, requires_grad=True)
    weight = torch.randn(classes, hidden).mul_(hidden**-0.5).requires_grad_()
    bias = torch.randn(classes, requires_grad=True)
    target = torch.randint(classes, (rows,))
    leaves = (x, weight, bias)

    def separate() -> torch.Tensor:
        return F.cross_entropy(F.linear(x, weight, bias), target)

    forwards = {
        "ours": partial(fastrnn.linear_cross_entropy, x, weight, bias, target),
        "torch.nn": separate,
    }
    if hasattr(F, "linear_cross_entropy"):  # torch 2.13 on
        chunks = torch.nn.LinearCrossEntropyOptions()
        forwards["torch chunked"] = partial(
            F.linear_cross_entropy, x, weight, target, linear_bias=bias, options=chunks
        )

    def step(name: str) -> list[torch.Tensor]:
        for leaf in leaves:
            leaf.grad = None
        found = forwards[name]()
        found.backward()
        return [found.detach(), *(leaf.grad for leaf in leaves)]

    def check() -> None:
        assert_close(step("ours"), step("torch.nn"))

    runs = {name: partial(step, name) for name in forwards}
    numbers = rows * hidden + classes * (hidden + 1)
    return Work(runs, check, 3 * rows * hidden * classes, bytes=3 * 4 * numbers)
