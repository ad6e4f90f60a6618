"""Cells, one step a call, against torch.nn's: what a decoder's own loop takes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

import fastrnn
from benchmarks.cases import Case, Work
from benchmarks.layers import Shape, assert_close, forward_multiply_adds, forward_numbers

SIZES = ((1, 64), (32, 256), (1, 650), (20, 650))  # B, H
SHAPES = [Shape(1, B, H, H, 1) for B, H in SIZES]
MODULES = {"lstm": "LSTMCell", "gru": "GRUCell", "rnn_tanh": "RNNCell"}


def cases() -> Iterator[Case]:
    """Every row of this suite."""
    for shape in SHAPES:
        for cell in MODULES:
            for mode in ("train", "infer"):
                columns = {"cell": cell, "mode": mode, **shape._asdict()}
                build = partial(single_step, cell, mode, shape)
                yield Case("single_steps", f"{cell}/{mode}/{shape}", build, columns)


def single_step(cell: str, mode: str, shape: Shape) -> Work:
    """A step from given states; in training with every gradient."""
    ours, peer = (getattr(m, MODULES[cell])(shape.I, shape.H) for m in (fastrnn, nn))
    ours.load_state_dict(peer.state_dict())
    train = mode == "train"
    x = torch.randn(shape.B, shape.I, requires_grad=train)
    h, c = (torch.randn(shape.B, shape.H, requires_grad=train) for _ in range(2))
    hx, grad = (h, c) if cell == "lstm" else h, torch.randn(shape.B, shape.H)

    def states(module: nn.Module) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(train):
            found = module(x, hx)
        return found if isinstance(found, tuple) else (found,)

    def step(module: nn.Module) -> None:
        last = states(module)
        if train:
            module.zero_grad()
            x.grad = h.grad = c.grad = None
            torch.autograd.backward(last, [grad] * len(last))

    def results(module: nn.Module) -> list[Tensor]:
        step(module)
        grads = [t.grad for t in (x, h, c, *module.parameters()) if t.grad is not None]
        return [*(s.detach() for s in states(module)), *(g.clone() for g in grads)]

    passes = 3 if train else 1
    return Work(
        {"ours": partial(step, ours), "torch.nn": partial(step, peer)},
        lambda: assert_close(results(ours), results(peer)),
        passes * forward_multiply_adds(cell, shape),
        4,
        passes * forward_numbers(cell, shape) * 4,
        passes,
    )
