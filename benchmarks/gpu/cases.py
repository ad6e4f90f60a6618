"""What is measured: layers, precisions, passes, and how they are called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

GATES = {"lstm": 4, "gru": 3}


class Shape(NamedTuple):
    """T steps, B sequences, I inputs, H units, L layers."""

    T: int
    B: int
    I: int  # noqa: E741 (the project's letter)
    H: int
    L: int


@dataclass(frozen=True)
class Case:
    """One row of the results.

    Args:
        cell: "lstm" or "gru".
        shape: the layer's.
        precision: "float32" (no TF32 in any product), "tf32", "float16" or "bfloat16".
        mode: "forward" (no gradients) or "train" (forward and backward).
        how: "eager" or "graph" (replays of a CUDA graph).
        directions: 1 or 2.
    """

    cell: str
    shape: Shape
    precision: str
    mode: str
    how: str
    directions: int = 1

    @property
    def name(self) -> str:
        """On the command line, and in the table."""
        sizes = "x".join(map(str, self.shape))
        both = "-both" if self.directions == 2 else ""
        return f"{self.cell}{both}-{sizes}-{self.precision}-{self.mode}-{self.how}"

    @property
    def columns(self) -> dict[str, Any]:
        """In a row."""
        named = {"cell": self.cell, "precision": self.precision, "mode": self.mode, "how": self.how}
        return named | self.shape._asdict() | {"directions": self.directions}

    @property
    def operations(self) -> float:
        """Floating-point operations of the products, a multiply-add counted as two."""
        T, B, I, H, L = self.shape  # noqa: E741, N806
        D = self.directions  # noqa: N806
        forward = 2.0 * T * B * D * GATES[self.cell] * H * (I + H + (L - 1) * (D + 1) * H)
        return forward if self.mode == "forward" else 3 * forward

    @property
    def chain(self) -> int:
        """Steps that wait for each other."""
        steps = self.shape.T * self.shape.L
        return steps if self.mode == "forward" else 2 * steps


class AttentionShape(NamedTuple):
    """B sequences, heads, positions of queries and keys, units of a head."""

    B: int
    heads: int
    positions: int
    size: int


@dataclass(frozen=True)
class AttentionCase:
    """One row of attention; precision, mode and how as in `Case`.

    Args:
        shape: of queries, keys and values.
        mask: "boolean" (three in ten keys are left out) or "causal".
    """

    shape: AttentionShape
    mask: str
    precision: str
    mode: str
    how: str = "graph"
    chain = 0  # of steps that wait for each other

    @property
    def name(self) -> str:
        """On the command line, and in the table."""
        sizes = "x".join(map(str, self.shape))
        return f"attention-{sizes}-{self.mask}-{self.precision}-{self.mode}-{self.how}"

    @property
    def columns(self) -> dict[str, Any]:
        """In a row."""
        named = {"mask": self.mask, "precision": self.precision, "mode": self.mode, "how": self.how}
        return named | self.shape._asdict()

    @property
    def operations(self) -> float:
        """Of two products forward and five more backward; half of each under the causal rule."""
        B, heads, positions, size = self.shape  # noqa: N806
        product = 2.0 * B * heads * positions**2 * size
        count = 2 if self.mode == "forward" else 7
        return count * product / (2 if self.mask == "causal" else 1)


# Of the device: benchmarks/gpu/peaks.py.
PEAKS = ("peak-launch", "peak-products", "peak-bandwidth", "peak-clusters", "peak-grid")
PENN = [Shape(35, 20, 200, 200, 2), Shape(35, 20, 650, 650, 2), Shape(35, 20, 1500, 1500, 2)]
# Narrow layers are one launch by the plan's choice ("auto"), one by one by a schedule asked for.
DEEPER = Shape(35, 20, 256, 256, 3)
# Where cuDNN's persistent kernels run.
ITS_OWN_GROUND = [Shape(1024, 16, 768, 768, 1), Shape(1024, 16, 1024, 1024, 1)]
ATTENTION = [
    (AttentionShape(4, 16, 2048, 64), ("boolean", "causal")),
    (AttentionShape(2, 16, 4096, 128), ("boolean", "causal")),
    (AttentionShape(128, 16, 35, 32), ("boolean",)),
]


def cases() -> Iterator[Case | AttentionCase]:
    """All, the most telling first: what time does not suffice for is left out at the end."""
    both = [(mode, how) for how in ("graph", "eager") for mode in ("forward", "train")]
    for mode, how in both:
        for shape in PENN:
            yield Case("lstm", shape, "bfloat16", mode, how)
        for shape in ITS_OWN_GROUND:
            yield Case("lstm", shape, "float16", mode, how)
        if how == "graph":
            yield Case("lstm", DEEPER, "bfloat16", mode, how)
            for attention, masks in ATTENTION:
                for mask in masks:
                    yield AttentionCase(attention, mask, "bfloat16", mode)
    for precision in ("tf32", "float32", "float16"):
        for mode, how in both:
            for shape in PENN:
                yield Case("lstm", shape, precision, mode, how)
    for mode, how in both:
        for shape in PENN:
            yield Case("gru", shape, "bfloat16", mode, how)
    for mode, how in both[:2]:
        for shape in PENN[:2]:
            yield Case("lstm", shape, "bfloat16", mode, how, directions=2)
