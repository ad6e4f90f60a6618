"""Rows of the compatibility table: what is tried, on which modules, and what came out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import modules

KINDS = ("RNN", "GRU", "LSTM")
SECTIONS = ("Input and state", "Parameters and files", "Training", "Transforms", "Graphs")
IN, H, T, B = 4, 6, 5, 3


@dataclass(frozen=True)
class Case:
    """One try: a library (torch.nn or fastrnn.modules) and one of KINDS."""

    library: ModuleType
    kind: str

    def layer(self, *, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
        """A layer of the library, with the same weights every time."""
        return _seeded(self.library, self.kind, dtype, options)

    def exact(self, *, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
        """The layer of torch.nn with the weights of `layer`."""
        return _seeded(nn, self.kind, dtype, options)

    def cell(self, *, dtype: torch.dtype = torch.float64) -> nn.Module:
        """A single-step module of the library."""
        return _seeded(self.library, f"{self.kind}Cell", dtype, {})

    def hx(self, *shape: int, dtype: torch.dtype = torch.float64) -> Any:
        """Initial states of a shape that ends in units, as this kind takes them."""
        states = tuple(values(*shape, seed=s, dtype=dtype) for s in (7, 8))
        return states if self.kind == "LSTM" else states[0]


def _seeded(library: ModuleType, name: str, dtype: torch.dtype, options: Any) -> nn.Module:
    torch.manual_seed(0)
    return getattr(library, name)(IN, H, dtype=dtype, **options)


def values(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal random numbers, the same every time."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def tensors(nested: Any) -> list[Tensor]:
    """The tensors of nested tuples; a PackedSequence is one too."""
    if isinstance(nested, Tensor):
        return [nested]
    return [] if nested is None else [leaf for item in nested for leaf in tensors(item)]


def same(got: Any, expected: Any, atol: float = 1e-10) -> None:
    """Assert that all tensors of two nested results are equal, dtypes too."""
    torch.testing.assert_close(tensors(got), tensors(expected), rtol=0, atol=atol)


def gradients(module: nn.Module, *args: Any, inputs: Any = ()) -> list[Tensor]:
    """Gradients of the squares' sum of all results, to `inputs` and every parameter."""
    results = [r for r in tensors(module(*args)) if r.is_floating_point()]
    loss = sum(result.square().sum() for result in results)
    return list(torch.autograd.grad(loss, [*tensors(inputs), *module.parameters()]))


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        section: the heading it stands under.
        title: what is tried, in Markdown.
        run: tries it; an AssertionError means that the result differs.
        kinds: those of KINDS that it concerns.
        theirs: why torch.nn does not work here, if so.
        ours: why fastrnn does not work here, if so.
    """

    section: str
    title: str
    run: Callable[[Case], None]
    kinds: tuple[str, ...]
    theirs: str
    ours: str


@dataclass(frozen=True)
class Outcome:
    """What became of one try: "works", "raises" or "differs", and the error's text."""

    word: str
    text: str = ""


ROWS: list[Row] = []


def row(
    section: str, title: str, *, kinds: tuple[str, ...] = KINDS, theirs: str = "", ours: str = ""
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Add the decorated function to ROWS."""

    def add(run: Callable[[Case], None]) -> Callable[[Case], None]:
        ROWS.append(Row(section, title, run, kinds, theirs, ours))
        return run

    return add


@cache
def outcome(row: Row, library: ModuleType, kind: str) -> Outcome:
    """Try a row on one module."""
    if row.section == "Graphs":
        torch._dynamo.reset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row.run(Case(library, kind))
    except AssertionError as error:
        return Outcome("differs", str(error))
    except Exception as error:  # whatever it is, it is what a user would meet
        return Outcome("raises", f"{type(error).__name__}: {error}")
    return Outcome("works")


def verdict(row: Row, library: ModuleType) -> str:
    """A cell of the table: one word, and the kinds it holds for if not for all."""
    by_word: dict[str, list[str]] = {}
    for kind in row.kinds:
        by_word.setdefault(outcome(row, library, kind).word, []).append(kind)
    bad = {word: kinds for word, kinds in by_word.items() if word != "works"}
    if not bad:
        return "works"
    every = len(by_word) == 1
    return ", ".join(w if every else f"{w} ({', '.join(kinds)})" for w, kinds in bad.items())


def document() -> str:
    """The text of docs/compatibility.md."""
    notes: list[str] = []
    lines = [
        "# Compatibility",
        "",
        "Each row is tried on RNN, GRU and LSTM of both libraries by "
        "`tests/test_compatibility.py`,",
        "which fails when this page is not what it finds. `FASTRNN_WRITE_DOCS=1` makes it rewrite "
        "the page.",
        f"Tried on a CPU with torch {torch.__version__.split('+')[0]}. *Works*: no error, and the "
        "values and gradients",
        "that a plain call of torch.nn gives; *differs*: no error, but something else came out.",
    ]
    section = ""
    for each in sorted(ROWS, key=lambda row: SECTIONS.index(row.section)):
        if each.section != section:
            section = each.section
            lines += ["", f"| {section} | torch.nn | fastrnn |", "|---|---|---|"]
        cells = []
        for library, note in ((nn, each.theirs), (modules, each.ours)):
            cell = verdict(each, library)
            if cell != "works":
                if note not in notes:
                    notes.append(note)
                cell += f" [^{notes.index(note) + 1}]"
            cells.append(cell)
        only = "" if each.kinds == KINDS else f" ({', '.join(each.kinds)})"
        lines.append(f"| {each.title}{only} | {cells[0]} | {cells[1]} |")
    lines.append("")
    lines += [f"[^{number}]: {note}" for number, note in enumerate(notes, 1)]
    return "\n".join(lines) + "\n"
