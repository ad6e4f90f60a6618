"""Recurrent layers against torch.nn's: every cell, training and inference, word models' shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastrnn
from benchmarks.cases import Case, Work
from benchmarks.timing import Run
from fastrnn.cells import CELLS


class Shape(NamedTuple):
    """Steps, batch, input size, hidden size, layers."""

    T: int
    B: int
    I: int  # noqa: E741 (the letter of fastrnn/cells.py)
    H: int
    L: int

    def __str__(self) -> str:
        return "x".join(map(str, self))


SHAPES = (
    Shape(35, 20, 200, 200, 2),
    Shape(20, 20, 200, 200, 2),
    Shape(32, 128, 128, 128, 1),
    Shape(35, 20, 650, 650, 2),
    Shape(35, 20, 1500, 1500, 2),
)
WORDS = SHAPES[0]
ONE_STEP = Shape(1, 20, 200, 200, 2)
SMALLEST = Shape(1, 1, 64, 64, 1)  # a call's own cost
ONE_SEQUENCE = Shape(100, 1, 100, 100, 2)  # no step has work for a second thread
STREAMS = (Shape(1, 1, 256, 256, 1), Shape(1, 1, 650, 650, 2))
CELLS_OF_TORCH = ("lstm", "gru", "rnn_tanh")
MODES = ("train", "infer", "frozen")
# Of which each is also measured in bfloat16, beside our own float32.
ROUGH = (SHAPES[0], SHAPES[3], SHAPES[4])
# Each is here to be seen beside the main rows: at the word model's shape only.
OTHERS = (
    ("gru_reset_before", "float32", "native"),
    ("rnn_relu", "float32", "native"),
    *((cell, "float64", "native") for cell in CELLS_OF_TORCH),
    *((cell, "float32", "reference") for cell in CELLS_OF_TORCH),
)


def cases() -> Iterator[Case]:
    """Every row of this suite."""
    for shape in (*SHAPES, ONE_STEP, SMALLEST, ONE_SEQUENCE):
        for cell in CELLS_OF_TORCH:
            for mode in MODES:
                quick = shape == WORDS or (shape == ONE_STEP and mode == "train")
                yield _case(cell, mode, shape, quick=quick)
    for shape in ROUGH:
        for cell in CELLS_OF_TORCH:
            for mode in ("train", "frozen"):
                quick = shape == WORDS and cell == "lstm"
                yield _case(cell, mode, shape, "bfloat16", quick=quick)
    for shape in STREAMS:
        for cell in CELLS_OF_TORCH:
            yield _case(cell, "stream", shape, quick=shape.L == 1)
    for cell, dtype, backend in OTHERS:
        for mode in MODES[:2]:
            yield _case(cell, mode, WORDS, dtype, backend)


def _case(
    cell: str,
    mode: str,
    shape: Shape,
    dtype: str = "float32",
    backend: str = "native",
    quick: bool = False,
) -> Case:
    columns = {"cell": cell, "mode": mode, **shape._asdict(), "dtype": dtype, "backend": backend}
    kind = getattr(torch, dtype)
    if mode == "stream":
        build = partial(stream, cell, shape, kind)
    else:
        build = partial(layers, cell, mode, shape, kind, backend)
    return Case("layers", f"{cell}/{mode}/{shape}/{dtype}/{backend}", build, columns, quick)


def layers(
    cell: str, mode: str, shape: Shape, dtype: torch.dtype = torch.float32, backend: str = "native"
) -> Work:
    """Ours against torch.nn's; a cell that torch lacks against our reference backend."""
    ours, peer = pair(cell, shape, dtype)
    name, other = ("reference", "reference") if type(ours) is type(peer) else ("torch.nn", "auto")
    x = torch.randn(shape.T, shape.B, shape.I, dtype=dtype)
    if mode == "frozen":
        ours.freeze()
    run = trained(x, shape.H) if mode == "train" else inferred(x)
    look = gradients if mode == "train" else outputs

    def check() -> None:
        with fastrnn.use_backend(backend):
            found = look(ours, x)
        with fastrnn.use_backend(other):
            assert_close(found, look(peer, x))

    runs = {"ours": on(backend, partial(run, ours)), name: on(other, partial(run, peer))}
    if dtype == torch.bfloat16:
        exact = deepcopy(ours).float()
        if mode == "frozen":
            exact.freeze()
        again = trained(x.float(), shape.H) if mode == "train" else inferred(x.float())
        runs["float32"] = on(backend, partial(again, exact))
    passes = 3 if mode == "train" else 1
    return Work(
        runs,
        check,
        passes * forward_multiply_adds(cell, shape),
        dtype.itemsize,
        passes * forward_numbers(cell, shape) * dtype.itemsize,
        (2 if mode == "train" else 1) * shape.T * shape.L,
    )


def stream(cell: str, shape: Shape, dtype: torch.dtype = torch.float32) -> Work:
    """One step, states carried on, against torch.nn called with a sequence of one."""
    ours, peer = pair(cell, shape, dtype)
    x = torch.randn(shape.T, shape.B, shape.I, dtype=dtype)
    streaming = ours.stream(shape.B)
    state = None

    def ours_step() -> Tensor:
        return streaming.step(x[0])

    def peer_step() -> Tensor:
        nonlocal state
        with torch.no_grad():
            output, state = peer(x, state)
        return output[0]

    def check() -> None:
        for _ in range(3):
            assert_close([ours_step()], [peer_step()])

    return Work(
        {"ours": ours_step, "torch.nn": peer_step},
        check,
        forward_multiply_adds(cell, shape),
        dtype.itemsize,
        forward_numbers(cell, shape) * dtype.itemsize,
        shape.L,
    )


def pair(
    cell: str, shape: Shape, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[nn.Module, nn.Module]:
    """Our layers and torch's (ours again for a cell that torch lacks), of the same weights."""
    sizes = (shape.I, shape.H, shape.L)
    if cell == "gru_reset_before":
        modules = [fastrnn.GRU(*sizes, reset_after=False, dtype=dtype, **options) for _ in range(2)]
    else:
        kind = {"lstm": "LSTM", "gru": "GRU"}.get(cell, "RNN")
        if kind == "RNN":
            options["nonlinearity"] = cell.removeprefix("rnn_")
        modules = [getattr(m, kind)(*sizes, **options, dtype=dtype) for m in (fastrnn, nn)]
    modules[0].load_state_dict(modules[1].state_dict())
    return modules[0], modules[1]


def trained(x: Tensor, hidden: int) -> Callable[[nn.Module], None]:
    """Forward and backward of a module, to every gradient."""
    x = x.clone().requires_grad_()
    grad = torch.randn(*x.shape[:2], hidden, dtype=x.dtype)

    def run(module: nn.Module) -> None:
        module.zero_grad()
        x.grad = None
        module(x)[0].backward(grad)

    return run


def inferred(x: Tensor) -> Callable[[nn.Module], None]:
    """Forward of a module without gradients."""

    def run(module: nn.Module) -> None:
        with torch.no_grad():
            module(x)

    return run


def on(backend: str, run: Run) -> Run:
    """A run with the backend set around it."""
    if backend == "auto":
        return run

    def chosen() -> None:
        with fastrnn.use_backend(backend):
            run()

    return chosen


def forward_multiply_adds(cell: str, shape: Shape) -> int:
    """Of the products in one forward pass; a training step needs three times it."""
    rows = CELLS[cell].gates * shape.H
    return shape.T * shape.B * rows * (shape.I + shape.H + (shape.L - 1) * 2 * shape.H)


def forward_numbers(cell: str, shape: Shape) -> int:
    """Weights and inputs, read once, and outputs, written once. A training step moves three times
    it: each is read once more, and its gradient is read or written."""
    rows = CELLS[cell].gates * shape.H
    weights = rows * (shape.I + shape.H + 2) + (shape.L - 1) * rows * (2 * shape.H + 2)
    return weights + shape.T * shape.B * (shape.I + shape.L * shape.H)


def outputs(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and last states, without gradients."""
    with torch.no_grad():
        output, state = module(x)
    return [output, *(state if isinstance(state, tuple) else (state,))]


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, and every gradient of its mean square."""
    module.zero_grad()
    x = x.detach().requires_grad_()
    output = module(x)[0]
    output.square().mean().backward()
    return [output.detach(), x.grad, *(p.grad for p in module.parameters())]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    """Equal but for rounding, against each tensor's largest element."""
    for a, b in zip(found, expected, strict=True):
        scale = float(b.abs().max()) or 1.0
        tolerance = {torch.float64: 1e-10, torch.float32: 1e-4}.get(b.dtype, 3e-2)
        torch.testing.assert_close(a, b, rtol=0.0, atol=tolerance * scale)
