"""Recurrent layers against torch.nn: training and inference, over shapes of word models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import fastrnn
from benchmarks.timing import compare, measured_peak
from fastrnn.cells import CELLS

# T, B, I, H, L
SHAPES = [(35, 20, 200, 200, 2), (35, 20, 650, 650, 2), (32, 128, 128, 128, 1)]
LARGE = [(35, 20, 1500, 1500, 2)]
KINDS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn_tanh": torch.nn.RNN}


def multiply_adds(cell: str, shape: tuple[int, ...]) -> int:
    """Multiply-adds of the products in one forward pass; a training step needs three times it."""
    steps, batch, inputs, hidden, layers = shape
    rows = CELLS[cell].gates * hidden
    return steps * batch * rows * (inputs + hidden + (layers - 1) * 2 * hidden)


def check(ours: torch.nn.Module, peer: torch.nn.Module, x: torch.Tensor) -> None:
    """Refuse to time what does not agree."""
    gradients = []
    for module in (ours, peer):
        module.zero_grad()
        output, _ = module(x)
        output.square().mean().backward()
        gradients.append([output, *(p.grad for p in module.parameters())])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def rows(quick: bool) -> Iterator[dict[str, Any]]:
    """One row per cell, shape and mode."""
    torch.manual_seed(0)
    for shape in SHAPES if quick else SHAPES + LARGE:
        steps, batch, inputs, hidden, layers = shape
        rounds = max(5, min(60, int(2e10 / multiply_adds("lstm", shape))))
        for cell, kind in KINDS.items():
            peer = kind(inputs, hidden, layers)
            ours = fastrnn.accelerate(kind(inputs, hidden, layers))
            ours.load_state_dict(peer.state_dict())
            x = torch.randn(steps, batch, inputs)
            check(ours, peer, x)
            floor = 2 * multiply_adds(cell, shape) / measured_peak() * 1e-6
            case = {"cell": cell, "T": steps, "B": batch, "I": inputs, "H": hidden, "L": layers}
            grad = torch.randn(steps, batch, hidden)

            def train(module: torch.nn.Module, x=x, grad=grad) -> None:
                module.zero_grad()
                x.requires_grad_().grad = None
                module(x)[0].backward(grad)

            def infer(module: torch.nn.Module, x=x) -> None:
                with torch.no_grad():
                    module(x)

            for mode, run, passes in (("train", train, 3), ("infer", infer, 1)):
                runs = {
                    "ours": lambda run=run, m=ours: run(m),
                    "torch.nn": lambda run=run, m=peer: run(m),
                }
                yield compare(case | {"mode": mode}, runs, passes * floor, rounds)
