"""Batches of an encoded text: windows of columns, or sentences side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrnn.lm.config import TrainingOptions

IGNORED = -100  # the target that torch's cross_entropy leaves out
_POOL = 100  # batches whose sentences are sorted by length together


@dataclass(frozen=True)
class Batch:
    """What one step reads.

    Args:
        inputs: int64 [T, B].
        targets: int64 [T, B], `IGNORED` where there is nothing to predict.
        count: targets that are not ignored.
        carried: whether the hidden state of the batch before is this one's.
        resets: bool [T, B], steps before which the state is zeroed, or None.
        lengths: CPU int64 [B], where each column ends, or None: at T.
    """

    inputs: Tensor
    targets: Tensor
    count: int
    carried: bool = True
    resets: Tensor | None = None
    lengths: Tensor | None = None

    def part(self, index: int, parts: int) -> Batch:
        """One of several equal shares of the columns."""
        if parts == 1:
            return self
        width = self.inputs.size(1) // parts
        share = slice(index * width, (index + 1) * width)
        targets = self.targets[:, share]
        return Batch(
            self.inputs[:, share],
            targets,
            int((targets != IGNORED).sum()),
            self.carried,
            None if self.resets is None else self.resets[:, share],
            None if self.lengths is None else self.lengths[share],
        )

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        if device.type == "cpu":
            return self
        resets = None if self.resets is None else self.resets.to(device)
        inputs, targets = self.inputs.to(device), self.targets.to(device)
        return Batch(inputs, targets, self.count, self.carried, resets, self.lengths)


def window(inputs: Tensor, targets: Tensor, document: int | None) -> Batch:
    """A batch of continuous text.

    Args:
        inputs: integers [T, B], as are the targets.
        targets: see `Batch`.
        document: the token that begins a document, read from a state of zeros and never
            predicted; None: there are none.
    """
    inputs, targets = inputs.long(), targets.long()
    if document is None:
        return Batch(inputs, targets, targets.numel() - int((targets == IGNORED).sum()))
    targets = targets.masked_fill(targets == document, IGNORED)
    count = int((targets != IGNORED).sum())
    return Batch(inputs, targets, count, True, inputs == document)


class Columns:
    """A text laid out in columns side by side, read window by window.

    Args:
        tokens: integers [N]; may lie in a file, only what is read is copied.
        options: `batch_size` columns, windows of `bptt` rows or, with `random_bptt`, around it.
        document: see `window`.

    Source: Merity et al. 2018, section 5 (random lengths; probability and deviation from there).
    """

    def __init__(self, tokens: Tensor, options: TrainingOptions, document: int | None) -> None:
        self._options, self._document = options, document
        width = options.batch_size
        rows = tokens.numel() // width
        # [rows, B], not contiguous: column b goes on where column b - 1 ends.
        self._columns = tokens[: rows * width].view(width, rows).t()
        self._rows = rows - 1
        self._epoch, self._ends = 0, np.zeros(0, np.int64)
        self.alike = not options.random_bptt  # whether all epochs have as many batches

    def ends(self, epoch: int) -> npt.NDArray[np.int64]:
        """The row after each window of an epoch, from 1."""
        if self._epoch != epoch:
            self._epoch, self._ends = epoch, self._draw_ends(epoch)
        return self._ends

    def _draw_ends(self, epoch: int) -> npt.NDArray[np.int64]:
        size, rows = self._options.bptt, self._rows
        if not self._options.random_bptt:
            return np.minimum(np.arange(size, rows + size, size), rows)
        least, generator = min(5, size), generator_of(self._options.seed, epoch)
        most = rows // least + 1
        base = torch.where(torch.rand(most, generator=generator) < 0.95, size, size / 2)
        drawn = (base + 5 * torch.randn(most, generator=generator)).long().clamp(min=least)
        ends = drawn.cumsum(0).clamp(max=rows).numpy()
        return np.asarray(ends[: int(np.searchsorted(ends, rows)) + 1])

    def count(self, epoch: int) -> int:
        """Batches in an epoch."""
        return len(self.ends(epoch))

    def get(self, epoch: int, index: int) -> Batch:
        """A batch of an epoch, by its place from 0."""
        ends = self.ends(epoch)
        start, end = int(ends[index - 1]) if index else 0, int(ends[index])
        inputs, targets = self._columns[start:end], self._columns[start + 1 : end + 1]
        return window(inputs.contiguous(), targets.contiguous(), self._document)


class Sentences:
    """A text read line by line: every column of a batch is one line, by itself.

    Args:
        tokens: integers [N], the last of them `eos`.
        options: `batch_size` lines a batch; `seed` of their order.
        eos: the token that ends every line, and that is taken to stand before it.
    """

    def __init__(self, tokens: Tensor, options: TrainingOptions, eos: int) -> None:
        self._tokens, self._options, self._eos = tokens, options, eos
        ends = np.flatnonzero(tokens.numpy() == eos) + 1
        self._starts = np.concatenate(([0], ends[:-1]))
        self._lengths = ends - self._starts
        self._epoch, self._order = 0, np.zeros((0, 0), np.int64)
        self.alike = True  # all epochs have as many batches

    def _batches(self, epoch: int) -> npt.NDArray[np.int64]:
        """Numbers of lines, [batches, B]: shuffled, with lines of like length side by side."""
        if self._epoch != epoch:
            size, generator = self._options.batch_size, generator_of(self._options.seed, epoch)
            order = torch.randperm(len(self._starts), generator=generator).numpy()
            order = order[: len(order) // size * size]
            pools = np.arange(len(order)) // (size * _POOL)
            order = order[np.lexsort((self._lengths[order], pools))].reshape(-1, size)
            self._order = order[torch.randperm(len(order), generator=generator).numpy()]
            self._epoch = epoch
        return self._order

    def count(self, epoch: int) -> int:
        """Batches in an epoch; lines that do not fill the last one are left out of it."""
        return len(self._batches(epoch))

    def get(self, epoch: int, index: int) -> Batch:
        """A batch of an epoch, by its place from 0."""
        return self._read(self._batches(epoch)[index])

    def every(self, columns: int) -> Iterator[Batch]:
        """Every line once, shortest first, at most `columns` a batch."""
        order = np.argsort(self._lengths, kind="stable")
        for start in range(0, len(order), columns):
            yield self._read(order[start : start + columns])

    def _read(self, lines: npt.NDArray[np.int64]) -> Batch:
        lengths = self._lengths[lines]
        targets = torch.full((int(lengths.max()), len(lines)), IGNORED)
        for column, (line, length) in enumerate(zip(lines, lengths, strict=True)):
            start = self._starts[line]
            targets[:length, column] = self._tokens[start : start + length]
        inputs = torch.full_like(targets, self._eos)
        inputs[1:] = targets[:-1].where(targets[:-1] != IGNORED, self._eos)
        return Batch(
            inputs, targets, int(lengths.sum()), carried=False, lengths=torch.from_numpy(lengths)
        )


def count_batches(batches: Columns | Sentences, epochs: int, most: int | None) -> int:
    """Batches in so many epochs, or `most` where those have more."""
    if batches.alike:
        total = epochs * batches.count(1)
        return total if most is None else min(total, most)
    total = 0
    for epoch in range(1, epochs + 1):
        total += batches.count(epoch)
        if most is not None and total >= most:  # each epoch more takes time to draw
            return most
    return total


def generator_of(seed: int, epoch: int) -> torch.Generator:
    """A generator for what is drawn at an epoch's start; the same on every rank and after a
    resume."""
    word = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word >> np.uint64(1)))
