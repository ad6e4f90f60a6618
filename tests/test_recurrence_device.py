"""The CUDA operators' host side, over emulated kernels on CPU tensors: walk, products, gradients."""

from __future__ import annotations

import pytest
import torch

from build_tools import toolchain
from fastrnn import ops
from fastrnn.cells import CELLS, COMPILED
from tests import emulated
from tests.layers import NAMES, assert_as_close_as_torch, random_layer

try:
    toolchain.compiler()
except toolchain.BuildError as error:
    pytest.skip(str(error), allow_module_level=True)

# A few roundings of each dtype, relative to the largest value.
FLOORS = {
    torch.float32: 1e-6,
    torch.float64: 2e-14,
    torch.float16: 4 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps,
}
# batch_sizes, I, H
SHAPES = {
    "one": ([1], 1, 1),
    "step": ([5], 12, 33),
    "padded": ([3, 3, 3, 3], 8, 40),
    "ragged": ([5, 5, 3, 3, 1], 7, 24),
    "ended": ([3, 2, 0], 5, 9),
}
CELL_NAMES = [name for name in CELLS if name in COMPILED]
SCHEDULES = ["step"]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Everything torch allocates holds NaN until a kernel writes it."""
    torch.use_deterministic_algorithms(True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    found = emulated.operators()
    found.use_cuda_schedule.default(request.param)
    yield request.param
    found.use_cuda_schedule.default("auto")


def weights(tensors):
    """Gradients that come back to the outputs, the same ones for every dtype."""
    generator = torch.Generator().manual_seed(1)
    draw = [torch.rand(t.shape, generator=generator, dtype=torch.float64) for t in tensors]
    return [w.to(t.dtype) for w, t in zip(draw, tensors, strict=True)]


def by_reference(layer):
    results = ops.reference(*layer.arguments)
    total = sum((r * w).sum() for r, w in zip(results, weights(results[:3]), strict=False))
    grads = torch.autograd.grad(total, layer.present, materialize_grads=True)
    return [r.detach() for r in results], grads


def by_operators(layer):
    run = emulated.operators()
    results = run.recurrence.default(*layer.arguments, True)
    output, _, cells, reserve = results
    *rows, cell, reverse = layer.arguments
    grads = run.recurrence_backward.default(
        *weights(results[:3]), *rows, output, cells, reserve, cell, reverse, True, True
    )
    assert not any(r.requires_grad for r in (*results, *grads))
    present = [g for g, t in zip(grads, layer.tensors, strict=True) if t is not None]
    return results, present


def check(layer, dtype):
    exact, exact_grads = by_reference(layer)
    rounded = layer.to(dtype)
    torchs, torchs_grads = by_reference(rounded)
    ours, our_grads = by_operators(rounded)
    present = [n for n, t in zip(NAMES, layer.tensors, strict=True) if t is not None]
    names = ["output", "state_n", "cells", "reserve", *(f"grad_{n}" for n in present)]
    every = zip(
        names,
        [*ours, *our_grads],
        [*torchs, *torchs_grads],
        [*exact, *exact_grads],
        strict=True,
    )
    for name, *values in every:
        assert_as_close_as_torch(name, *values, FLOORS[dtype])


@pytest.mark.parametrize("dtype", FLOORS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_grid(schedule, cell, shape, dtype):
    for reverse in (False, True):
        for bias, projected in ((True, False), (False, False), (True, True)):
            sizes = SHAPES[shape]
            check(random_layer(cell, *sizes, bias=bias, projected=projected, reverse=reverse), dtype)
