"""The steps of a batch of packed sequences, and what acts in them besides the cell."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .blocks import DRAWN, EXPECTED


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Step(NamedTuple):
    """A step's number, packed rows, and those of the steps taken before and after it.

    A count of 0 says that there is no such step.
    """

    number: int
    row: int
    count: int
    before_row: int = 0
    before_count: int = 0
    after_row: int = 0
    after_count: int = 0


@dataclass(frozen=True)
class Walk:
    """A batch of sequences as packed rows.

    Args:
        sizes: T numbers of sequences, non-increasing.
        resets: bool [N] or None, zero a row's state before its step.
        seed: int64 [1] or None; None: zoneout's expectation.
        sequences: int64 [B] or None, zoneout's numbers for the sequences.
        zoneout: S probabilities, or none.
        reverse: from the last step to the first.
    """

    sizes: list[int]
    resets: Tensor | None
    seed: Tensor | None
    sequences: Tensor | None
    zoneout: tuple[float, ...]
    reverse: bool

    @cached_property
    def steps(self) -> list[Step]:
        """In the order in which they are taken."""
        rows = accumulate(self.sizes, initial=0)
        plain = [Step(t, next(rows), size) for t, size in enumerate(self.sizes)]
        if self.reverse:
            plain.reverse()
        for i, (a, b) in enumerate(pairwise(plain)):
            plain[i] = plain[i]._replace(after_row=b.row, after_count=b.count)
            plain[i + 1] = b._replace(before_row=a.row, before_count=a.count)
        return plain

    @cached_property
    def mode(self) -> int:
        """ZONEOUT of the kernels."""
        if not self.zoneout:
            return 0
        return (EXPECTED if self.seed is None else DRAWN).value

    @cached_property
    def kept(self) -> tuple[int, int]:
        """The first two states' probabilities in units of 2**-53, which is exact."""
        units = [round(p * 2**53) for p in self.zoneout]
        first, second, *_ = *units, 0, 0
        return first, second

    @cached_property
    def reset_rows(self) -> Tensor | None:
        """uint8 [N]."""
        return None if self.resets is None else self.resets.view(torch.uint8)

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """Sizes, and how many steps in succession have them."""
        return [(size, len(list(run))) for size, run in groupby(self.sizes)]

    def starts(self, device: torch.device) -> Tensor | None:
        """int64 [T+1], the first row of each step; None: all steps have B rows."""
        if self.sizes[0] == self.sizes[-1]:
            return None
        if _is_capturing(device):
            # A replay cannot copy from this process's memory: launches take the sizes along.
            sizes = torch.cat([torch.full((n,), size, device=device) for size, n in self.runs])
            return pad(sizes.cumsum(0), (1, 0))
        # The host waits for the device before it copies from memory that is not pinned.
        first = torch.tensor([0, *accumulate(self.sizes)], pin_memory=device.type == "cuda")
        return first.to(device, non_blocking=True)

    def previous(self, output: Tensor, state: Tensor) -> Tensor:
        """The h that each row's step found [N, H]: every step's [N, H], and the first [B, H]."""
        # Pieces of a run, not of a step: a slice costs the host as much as a launch.
        pieces, row, before = [], 0, 0
        for (size, count), (after, _) in pairwise([*self.runs, (0, 0)]):
            end = row + count * size
            if self.reverse:
                pieces += [output[row + size : end + after], state[after:size]]
            else:
                first = output[row - before : row - before + size] if row else state
                pieces += [first, output[row : end - size]]
            row, before = end, size
        found = torch.cat(pieces)
        return found if self.resets is None else found.masked_fill(self.resets[:, None], 0)
