"""What the schedules are given: a layer's tensors, and its walk over the steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cells import CELLS, Cell
from .tuning import INTERPRETED, shared_memory
from .walk import Walk

_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
# W_hh stays on chip up to this many elements by their size, its gates padded to a power of two;
# more would spill registers (tests/test_triton_compile.py looks).
_ON_CHIP = {2: 65_536, 4: 16_384}
TILE = 16  # sequences of a program, the least that tensor cores take


def padded(hidden: int) -> int:
    """Hidden units of a block that holds them all."""
    return max(TILE, triton.next_power_of_2(hidden))


def on_chip(cell: str, dtype: torch.dtype, hidden: int) -> bool:
    """Whether a whole sequence runs in one kernel on the current device."""
    if dtype not in _DTYPES:
        return False
    gates, units = CELLS[cell].gates, padded(hidden)
    elements, staged = gates * units**2, gates * TILE * units
    fits = elements <= _ON_CHIP[dtype.itemsize]
    return fits and (elements + staged) * dtype.itemsize <= shared_memory()


def precision() -> str:
    """Of float32 products inside a kernel: as torch is set for its own."""
    if torch.version.hip:  # Triton refuses TF32 on most AMD devices
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@dataclass(frozen=True)
class Layer:
    """One layer in one direction: contiguous tensors of one dtype and device.

    Args:
        name: a key of `CELLS`.
        state: [S, B, H].
        weight_hh: [G*H, H].
        bias_hh: [G*H] or None.
        walk: the steps.
    """

    name: str
    state: Tensor
    weight_hh: Tensor
    bias_hh: Tensor | None
    walk: Walk

    @property
    def cell(self) -> Cell:
        return CELLS[self.name]

    @property
    def batch(self) -> int:
        return self.state.size(1)

    @property
    def hidden(self) -> int:
        return self.state.size(2)

    @property
    def rows(self) -> int:
        return sum(self.walk.sizes)

    @property
    def slots(self) -> int:
        """Of the reserve: with zoneout the states that it acted on are there, too."""
        return self.cell.reserve + (self.cell.states if self.walk.zoneout else 0)

    @property
    def math(self) -> torch.dtype:
        """What is computed with, and carried from step to step."""
        return torch.float64 if self.state.dtype == torch.float64 else torch.float32

    @property
    def dot(self) -> tl.dtype:
        """What products multiply. The interpreter gets bfloat16 wrong there; float32 holds it."""
        return tl.float32 if INTERPRETED else _DTYPES[self.state.dtype]

    @property
    def units(self) -> int:
        """Hidden units as a block holds them."""
        return padded(self.hidden)

    @property
    def key(self) -> tuple[object, ...]:
        """What a tuned choice depends on."""
        return self.name, str(self.state.dtype).removeprefix("torch."), self.hidden, precision()
