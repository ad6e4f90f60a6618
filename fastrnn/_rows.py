"""Packed rows: from lengths and back, and what has to follow the rows around."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrnn.regularisers import row_indices

Tensors = tuple[Tensor, ...]


class Layout(NamedTuple):
    """How rows [N, I] are packed; all None for padded rows [T, B, I].

    Args:
        batch_sizes: CPU int64 [T], active sequences per step.
        order: int64 [B], the caller's numbers of the sequences, longest first; None: in order.
        inverse: int64 [B], the place of each of the caller's sequences.
    """

    batch_sizes: Tensor | None = None
    order: Tensor | None = None
    inverse: Tensor | None = None

    @property
    def batch(self) -> int:
        """B of packed rows."""
        assert self.batch_sizes is not None
        return int(self.batch_sizes[0]) if self.order is None else self.order.size(0)


PADDED = Layout()


class Lengths(NamedTuple):
    """Padded input as packed rows.

    Args:
        layout: of the rows.
        places: int64 [N], where in [T*B] (or [B*T]) each row is.
        shape: the first two axes of the input.
    """

    layout: Layout
    places: Tensor
    shape: torch.Size

    def pack(self, padded: Tensor) -> Tensor:
        """[T, B, ...] or [B, T, ...] -> [N, ...]."""
        return padded.flatten(0, 1).index_select(0, self.places)

    def unpack(self, rows: Tensor) -> Tensor:
        """[N, H] -> [T, B, H] or [B, T, H], zero beyond each length."""
        zeros = rows.new_zeros(self.shape.numel(), rows.size(1))
        return zeros.index_copy(0, self.places, rows).view(*self.shape, rows.size(1))


def by_length(lengths: Tensor, input: Tensor, batch_first: bool) -> Lengths:
    """Sort sequences by length.

    Args:
        lengths: CPU int64 [B], each from 1 to T.
        input: [T, B, I], or [B, T, I] with `batch_first`.
        batch_first: see there.
    """
    batch, steps = lengths.size(0), input.size(1 if batch_first else 0)
    if not torch.compiler.is_compiling():
        steps = int(lengths.max())  # rows that no sequence reaches do not take part
    order = lengths.argsort(descending=True, stable=True)
    times = torch.arange(steps, device="cpu").unsqueeze(1)
    active = times < lengths[order]  # [T, B]
    places = order * input.size(1) + times if batch_first else times * batch + order
    layout = Layout(active.sum(1), order.to(input.device), order.argsort().to(input.device))
    places = places[active].to(input.device)
    # The compiler, which does not know this number, has to know this much.
    torch._check(places.size(0) > 0)  # type: ignore[no-untyped-call]
    return Lengths(layout, places, input.shape[:2])


def permute(states: Tensors, order: Tensor | None) -> Tensors:
    """Reorder the sequences of states [L*D, B, width]."""
    return states if order is None else tuple(s.index_select(1, order) for s in states)


def same_at_every_step(rows: Tensor, layout: Layout, batch: int, p: float) -> Tensor:
    """Dropout of rows [T, B, width] or [N, width] by one mask [B, width] for all steps.

    Source: Gal and Ghahramani 2016.
    """
    mask = F.dropout(rows.new_ones(batch, rows.size(-1)), p)
    if layout.batch_sizes is None:
        return rows * mask
    _, sequences = row_indices(layout.batch_sizes.to(rows.device), rows.size(0))
    if layout.order is not None:
        sequences = layout.order[sequences]
    return rows * mask.index_select(0, sequences)


def resets_backwards(resets: Tensor, layout: Layout) -> Tensor:
    """The resets of the direction that runs from the end, [T, B] or [N] as given.

    A reset separates its row from the one before: going backwards, the state that comes from the
    row is zeroed before the step at the row before.
    """
    if layout.batch_sizes is None:
        return torch.cat((resets[1:], torch.zeros_like(resets[:1])))
    rows, sizes = resets.size(0), layout.batch_sizes.to(resets.device)
    steps, _ = row_indices(sizes, rows)
    row_before = torch.arange(rows, device=sizes.device) - sizes[steps - 1]
    later = slice(layout.batch, None)  # not the first step, which has none before it
    return torch.zeros_like(resets).index_copy(0, row_before[later], resets[later])
