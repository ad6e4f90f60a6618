"""Recurrences over projected rows, and what fastrnn.cells makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastrnn.cells import CELLS
from fastrnn.ops import reference
from fastrnn.regularisers import Extras
from tests.emulator import Step

Tensors = dict[str, Tensor]
DIFFERENTIABLE = ("x_proj", "state", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "gains")
RESULTS = ("output", "state_n", "cells")
# What acts inside a step; a cell of one state takes the first rate alone.
EXTRAS = (
    {"resets": 0.3},
    {"zoneout": (0.25, 0.5)},
    {"zoneout": (0.25, 0.5), "training": False},
    {"zoneout": (1.0, 0.0), "resets": 0.5},
)


@dataclass
class Problem:
    """A recurrence over projected rows, in float64, with the gradients that come back.

    Args:
        cell: a key of CELLS.
        sizes: T batch sizes.
        tensors: those of DIFFERENTIABLE that are there.
        grads: those of RESULTS that have a gradient.
        reverse: the walk's direction.
        extras: resets and zoneout.
    """

    cell: str
    sizes: Sequence[int]
    tensors: Tensors
    grads: Tensors
    reverse: bool = False
    extras: Extras = field(default_factory=Extras)

    @property
    def batch(self) -> int:
        return self.sizes[0]

    @property
    def hidden(self) -> int:
        return self.tensors["state"].size(2)

    @property
    def projected(self) -> int:
        """P, or 0."""
        return len(self.tensors["weight_hr"]) if "weight_hr" in self.tensors else 0

    def reference(self, dtype: torch.dtype) -> Tensors:
        """Results and gradients of fastrnn.cells in a dtype."""
        leaves = {n: t.detach().to(dtype).requires_grad_() for n, t in self.tensors.items()}
        x_proj, bias, extras = leaves["x_proj"], leaves.get("bias_ih"), self.extras
        if bias is not None and "gains" not in leaves:
            x_proj, bias = x_proj + bias, None
        output, state_n, cells, reserve = reference(
            *(x_proj, leaves["state"], None, leaves["weight_hh"], bias, leaves.get("bias_hh")),
            *(leaves.get("weight_hr"), leaves.get("gains"), torch.tensor(self.sizes)),
            *(extras.resets, extras.seed, extras.sequences, list(extras.zoneout or ())),
            *(self.cell, self.reverse),
        )
        results = {"output": output, "state_n": state_n, "cells": cells}
        found = torch.autograd.grad(
            [results[name] for name in self.grads],
            list(leaves.values()),
            [g.to(dtype) for g in self.grads.values()],
            materialize_grads=True,
        )
        results["reserve"] = reserve
        results |= {f"grad_{n}": g for n, g in zip(leaves, found, strict=True)}
        return {name: t.detach() for name, t in results.items() if t.numel()}


def problem(
    cell: str,
    sizes: Sequence[int],
    hidden: int,
    *,
    reverse: bool = False,
    bias: bool = True,
    resets: float = 0.0,
    zoneout: tuple[float, ...] | None = None,
    training: bool = True,
    grads: Sequence[str] = RESULTS,
    seed: int = 0,
    projected: int = 0,
    norm: bool = False,
) -> Problem:
    """Random tensors; `resets` is the share of rows that are reset, `projected` is P."""
    c = CELLS[cell]
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, bound: float = 1.0) -> Tensor:
        return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) * bound

    rows, batch, GH, bound = sum(sizes), sizes[0], c.gates * hidden, hidden**-0.5
    tensors = {
        "x_proj": draw(rows, GH, bound=2),
        "state": draw(c.states, batch, hidden),
        "weight_hh": draw(GH, projected or hidden, bound=bound),
    }
    if bias:
        tensors |= {"bias_ih": draw(GH, bound=bound), "bias_hh": draw(GH, bound=bound)}
    if projected:
        tensors["weight_hr"] = draw(projected, hidden, bound=bound)
    if norm:
        tensors["gains"] = 1 + draw(2 * (GH + (c.states - 1) * hidden), bound=0.3)
    every = {
        "output": draw(rows, projected or hidden),
        "state_n": draw(c.states, batch, hidden),
        "cells": draw(c.states - 1, rows, hidden),
    }
    extras = Extras(
        resets=torch.rand(rows, generator=generator) < resets if resets else None,
        zoneout=zoneout,
        seed=torch.tensor([-(2**62) + 12345]) if zoneout and training else None,
        sequences=torch.randperm(batch, generator=generator) + 7 if zoneout else None,
    )
    wanted = {n: every[n] for n in grads if every[n].numel()}
    return Problem(cell, sizes, tensors, wanted, reverse, extras)


def walk(sizes: Sequence[int], reverse: bool) -> list[Step]:
    """The steps of kernels_cuda.h in the order they run."""
    starts = [sum(sizes[:t]) for t in range(len(sizes))]
    order = list(range(len(sizes)))[:: -1 if reverse else 1]
    steps = []
    for i, t in enumerate(order):
        near = [order[i - 1] if i else None, order[i + 1] if i + 1 < len(order) else None]
        places = [
            n for k in near for n in ((0, 0) if k is None else (starts[k], min(sizes[k], sizes[t])))
        ]
        steps.append(Step(t, starts[t], sizes[t], *places))
    return steps
