"""Random calls of what torch.nn does not have: the native backend and the reference agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import fastrnn
from tests.fuzz_cases import LAYOUTS, laid_out, tensors
from tests.layers import assert_as_close_as_torch


@dataclass
class Call:
    """A module with options of ours, and a call of it.

    Args:
        name: LSTM, GRU or RNN.
        sizes: input and hidden size.
        options: of the constructor.
        steps: T, or lengths; a call with lengths has them in a tensor.
        batch: B.
        resets: share of the steps where a sequence begins anew.
        dtype: of everything.
        layout: strides of the input, one of LAYOUTS.
        training: mode of the module.
        seed: of values and masks.
    """

    name: str
    sizes: tuple[int, int]
    options: dict[str, Any]
    steps: int | list[int]
    batch: int
    resets: float
    dtype: torch.dtype
    layout: str
    training: bool
    seed: int

    def run(self, backend: str, dtype: torch.dtype) -> list[Tensor]:
        """Results, then gradients of a weighted sum of them."""
        generator = torch.Generator().manual_seed(self.seed)
        torch.manual_seed(self.seed)
        module = getattr(fastrnn, self.name)(*self.sizes, **self.options).to(self.dtype).to(dtype)
        module.train(self.training)
        lengths = None if isinstance(self.steps, int) else torch.tensor(self.steps)
        steps = self.steps if lengths is None else int(lengths.max())
        shape = (self.batch, steps) if module.batch_first else (steps, self.batch)
        x = torch.randn(*shape, self.sizes[0], generator=generator).to(self.dtype).to(dtype)
        x = laid_out(x, self.layout).requires_grad_()
        keywords: dict[str, Any] = {"lengths": lengths, "return_cells": self.name == "LSTM"}
        if self.resets:
            keywords["resets"] = torch.rand(shape, generator=generator) < self.resets
        with fastrnn.use_backend(backend):
            results = tensors(module(x, **keywords))
            weights = [torch.rand(r.shape, generator=generator).to(r.dtype) for r in results]
            loss = sum((r * w).sum() for r, w in zip(results, weights, strict=True))
            gradients = torch.autograd.grad(loss, [x, *module.parameters()])
        return [r.detach() for r in results] + list(gradients)


@st.composite
def option_calls(draw: Any) -> Call:
    """Calls with options of ours, every one of them possible."""
    name = draw(st.sampled_from(["LSTM", "LSTM", "GRU", "GRU", "RNN"]))
    sizes = (draw(st.integers(1, 20)), draw(st.one_of(*[st.integers(1, 40)] * 9, st.just(170))))
    rate = st.sampled_from([0.0, 0.0, 0.3, 1.0])
    options: dict[str, Any] = {
        "num_layers": draw(st.sampled_from([1, 1, 2])),
        "bias": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "zoneout": draw(st.tuples(rate, rate)) if name == "LSTM" else draw(rate),
        "recompute": draw(st.booleans()),
    }
    if name == "GRU":
        options["reset_after"] = draw(st.sampled_from([True, True, False]))
    if name != "RNN" and options.get("reset_after", True):
        options["layer_norm"] = draw(st.booleans())
    if name == "LSTM" and not options["layer_norm"] and sizes[1] > 1:
        options["proj_size"] = draw(st.integers(0, sizes[1] - 1))
    # What float32 loses grows with every norm over few units.
    exact = options.get("layer_norm", False) and sizes[1] < 8
    batch = draw(st.integers(1, 14))
    lengths = st.lists(st.integers(1, 9), min_size=batch, max_size=batch)
    return Call(
        name,
        sizes,
        options,
        steps=draw(st.one_of(st.integers(1, 9), lengths)),
        batch=batch,
        resets=draw(st.sampled_from([0.0, 0.0, 0.3])),
        dtype=torch.float64 if exact else draw(st.sampled_from([torch.float32, torch.float64])),
        layout=draw(st.sampled_from([n for n in LAYOUTS if n != "expanded"])),
        training=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
    )


def compare_backends(call: Call) -> None:
    """The same results and gradients from the kernels and from their definition."""
    ours = call.run("native", call.dtype)
    expected = call.run("reference", call.dtype)
    exact = call.run("reference", torch.float64)
    largest = max(e.abs().max().item() for e in exact)
    floor = 1e-5 if call.dtype == torch.float32 else 1e-11
    for number, parts in enumerate(zip(ours, expected, exact, strict=True)):
        name = f"result or gradient {number}"
        assert parts[0].dtype == call.dtype, name
        assert_as_close_as_torch(name, *parts, floor, max(largest, 1.0))
