"""Random layers for the tests, and the one tolerance rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastrnn.cells import CELLS

NAMES = (
    *("input", "state", "weight_ih", "weight_hh", "bias_ih", "bias_hh"),
    *("weight_hr", "gains"),
)


@dataclass
class Layer:
    """The operator's arguments: tensors by `NAMES` (None where absent), sizes and options."""

    cell: str
    tensors: list[Tensor | None]
    batch_sizes: Tensor
    reverse: bool = False
    # resets, seed, sequences, zoneout
    extras: tuple[Tensor | None, Tensor | None, Tensor | None, list[float]] = (None,) * 3 + ([],)

    @property
    def rows(self) -> tuple[object, ...]:
        """In the operators' order, what comes after the tensors that want gradients."""
        return (self.batch_sizes, *self.extras)

    @property
    def arguments(self) -> tuple[object, ...]:
        """In the order of `fastrnn::recurrence`, up to `reverse`."""
        return (*self.tensors, *self.rows, self.cell, self.reverse)

    @property
    def present(self) -> list[Tensor]:
        """The tensors that are there."""
        return [t for t in self.tensors if t is not None]

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Layer:
        """A copy in another dtype, or on another device, whose tensors want gradients."""
        tensors = [
            None if t is None else t.detach().to(device, dtype).requires_grad_()
            for t in self.tensors
        ]
        *extras, zoneout = self.extras
        moved = (None if e is None else e.to(device) for e in extras)
        return replace(self, tensors=tensors, extras=(*moved, zoneout))

    def with_extras(self, *, drawn: bool) -> Layer:
        """With resets in a third of the rows, and zoneout in training or evaluation."""
        generator = torch.Generator().manual_seed(1)
        rows, batch = int(self.batch_sizes.sum()), int(self.batch_sizes[0])
        resets = torch.rand(rows, generator=generator) < 1 / 3
        sequences = torch.randperm(batch, generator=generator)
        seed = torch.tensor([-(2**61) + 7]) if drawn else None
        return replace(
            self, extras=(resets, seed, sequences, [0.3, 0.6][: CELLS[self.cell].states])
        )

    def with_present(self, tensors: tuple[Tensor, ...]) -> tuple[object, ...]:
        """The arguments with other tensors in place of the present ones."""
        rest = iter(tensors)
        filled = [None if t is None else next(rest) for t in self.tensors]
        return (*filled, *self.rows, self.cell, self.reverse)


def random_layer(
    cell: str,
    batch_sizes: list[int],
    input_size: int,
    hidden_size: int,
    *,
    bias: bool = True,
    projected: bool = False,
    reverse: bool = False,
    proj_size: int = 0,
    norm: bool = False,
    seed: int = 0,
) -> Layer:
    """A float64 layer with torch.nn's initialisation.

    `projected` leaves out weight_ih, `proj_size` projects h, `norm` brings gains.
    """
    c = CELLS[cell]
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, bound: float = 1.0) -> Tensor:
        return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) * bound

    rows, bound = c.gates * hidden_size, 1 / math.sqrt(hidden_size)
    tensors = [
        draw(sum(batch_sizes), rows if projected else input_size, bound=2),
        draw(c.states, batch_sizes[0], hidden_size),
        None if projected else draw(rows, input_size, bound=bound),
        draw(rows, proj_size or hidden_size, bound=bound),
        # Without weight_ih a bias counts after a norm only.
        draw(rows, bound=bound) if bias and (norm or not projected) else None,
        draw(rows, bound=bound) if bias else None,
        draw(proj_size, hidden_size, bound=bound) if proj_size else None,
        None,
    ]
    if norm:
        tensors[7] = 1 + draw(2 * (rows + (c.states - 1) * hidden_size), bound=0.3)
    return Layer(cell, tensors, torch.tensor(batch_sizes), reverse).to(torch.float64)


def output_grads(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients that come back to outputs, the same ones for every dtype."""
    generator = torch.Generator().manual_seed(1)
    draw = [torch.rand(t.shape, generator=generator, dtype=torch.float64) for t in outputs]
    return [w.to(t) for w, t in zip(draw, outputs, strict=True)]


def named(
    layer: Layer, results: tuple[Tensor, ...], grads: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """Outputs, reserve and the gradients of the present tensors, by name."""
    present = [f"grad_{n}" for n, t in zip(NAMES, layer.tensors, strict=True) if t is not None]
    names = ("output", "state_n", "cells", "reserve", *present)
    return {n: t.detach() for n, t in zip(names, (*results, *grads), strict=True)}


def everything(function: Callable[..., tuple[Tensor, ...]], layer: Layer) -> dict[str, Tensor]:
    """Outputs, reserve and gradients of a weighted sum of the outputs, by name."""
    results = function(*layer.arguments)
    total = sum((r * w).sum() for r, w in zip(results, output_grads(results[:3]), strict=False))
    grads = torch.autograd.grad(total, layer.present, materialize_grads=True)
    return named(layer, results, grads)


def assert_all_as_close_as_torch(
    ours: Mapping[str, Tensor],
    torchs: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    floor: float,
) -> None:
    """`assert_as_close_as_torch` of everything, by name, that `exact` has."""
    assert ours.keys() == torchs.keys() == exact.keys()
    for name, right in exact.items():
        values = (each.detach().cpu() for each in (ours[name], torchs[name], right))
        assert_as_close_as_torch(name, *values, floor)


def assert_as_close_as_torch(
    name: str,
    ours: Tensor,
    torchs: Tensor,
    exact: Tensor,
    floor: float,
    largest: float | None = None,
) -> None:
    """Our error against float64 is at most twice torch's own at that dtype, plus the floor.

    The floor is relative to the largest exact value (or to `largest`, where sums cancel): a few
    roundings of the dtype.
    """
    assert ours.shape == exact.shape, name
    if exact.numel() == 0:
        return
    assert not ours.isnan().any(), f"{name} has NaN"
    error = (ours.double() - exact).abs().max().item()
    largest = exact.abs().max().item() if largest is None else largest
    allowed = 2 * (torchs.double() - exact).abs().max().item() + floor * largest
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def trained(module, x, resets, **wants):
    """Outputs and last states of a module's pass, and its parameters' gradients."""
    module.zero_grad()
    output, last, *cells = module(x, resets=resets, **wants)
    rows = [t if isinstance(t, torch.Tensor) else t.data for t in (output, *cells)]
    found = [*rows, *(last if isinstance(last, tuple) else [last])]
    sum(t.sin().sum() for t in found).backward()
    return [*found, *(p.grad for p in module.parameters())]


def random_rows(padded):
    """Input [6, 4, 3] or as many packed rows, in float64, and its resets."""
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    if padded:
        return x, torch.rand(6, 4) < 0.2
    x = torch.nn.utils.rnn.pack_padded_sequence(x, [6, 5, 2, 2])
    return x, torch.rand(len(x.data)) < 0.2
