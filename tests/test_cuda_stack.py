"""Layers one above the other in one launch: the cluster schedule's kernels, run by the emulator."""

import ctypes

import pytest
import torch

from fastrnn.cells import CELLS, recurrence
from tests.device_recurrence import OnDevice, run_side_by_side
from tests.emulator import EmulatorError, Layout
from tests.layers import assert_as_close_as_torch
from tests.recurrence_problems import problem

STACKED = ("lstm", "rnn_tanh", "rnn_relu")
SIZES = {"T1": [5], "T2B1": [1, 1], "T6": [5] * 6, "ragged": [5, 4, 4, 2, 1], "ended": [3, 3, 0]}


class Stack:
    """Layers of `problem`'s kind; what the lower ones hand on takes the place of their gradients.

    Args:
        cell, sizes, hidden: as of `problem`.
        layers: L.
        options: of `problem`.
    """

    def __init__(self, cell, sizes, hidden, layers=2, seed=0, **options):
        every = options.pop("grads", ("output", "state_n", "cells"))
        self.layers = []
        for layer in range(layers):
            top = layer == layers - 1
            grads = every if top else [name for name in every if name == "state_n"]
            self.layers.append(
                problem(cell, sizes, hidden, seed=10 * seed + layer, grads=grads, **options)
            )
        generator = torch.Generator().manual_seed(seed)
        shape = (layers - 1, CELLS[cell].gates * hidden, hidden)
        bound = hidden**-0.5
        self.weights = (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) * bound

    def reference(self, dtype):
        """Each layer's results and gradients in a dtype, as `OnDevice.found` names them."""
        inputs, outputs, sent, found, rows = [], [], [], [], None
        for k, p in enumerate(self.layers):
            leaves = {n: t.to(dtype).requires_grad_() for n, t in p.tensors.items()}
            if rows is not None:
                leaves["x_proj"] = rows @ self.weights[k - 1].to(dtype).T
            x_proj = leaves["x_proj"] + leaves.get("bias_ih", 0)
            rows, state_n, cells, reserve = recurrence(
                *(CELLS[p.cell], x_proj, leaves["state"].unbind(), leaves["weight_hh"]),
                *(leaves.get("bias_hh"), p.sizes, p.reverse),
                extras=p.extras,
            )
            results = {"output": rows, "state_n": torch.stack(state_n), "cells": cells}
            outputs += [results[name] for name in p.grads]
            sent += [g.to(dtype) for g in p.grads.values()]
            inputs += [leaves[name] for name in ("x_proj", "state", "weight_hh")]
            found.append(results | {"reserve": reserve})
        grads = iter(torch.autograd.grad(outputs, inputs, sent, materialize_grads=True))
        for results in found:
            results |= {f"grad_{n}": next(grads) for n in ("x_proj", "state", "weight_hh")}
        return [{n: t.detach() for n, t in each.items() if t.numel()} for each in found]

    def run(self, device, dtype, blocks, misalign=0, save=True, **options):
        ways = [OnDevice(device, p, dtype, misalign, save) for p in self.layers]
        for at in ways[1:]:
            at.tensors["x_proj"] = at.empty(*at.tensors["x_proj"].shape)
        for at in ways[:-1]:
            at.grads["output"] = at.empty(*at.results["output"].shape)
        weights = [ways[0].put(w) for w in self.weights]
        return run_side_by_side(ways, "stack", blocks, stack=weights, **options)


def check(device, stack, dtype, blocks, **options):
    found = stack.run(device, dtype, blocks, **options)
    exact, torchs = stack.reference(torch.float64), stack.reference(dtype)
    for k, ours in enumerate(found):
        assert set(ours) == set(exact[k])
        for name, value in ours.items():
            assert_as_close_as_torch(
                f"layer {k}: {name}",
                *(value, torchs[k][name], exact[k][name]),
                4 * torch.finfo(dtype).eps,
            )


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("cell", STACKED)
def test_shapes(device, cell, sizes):
    for hidden, dtype in ((1, torch.bfloat16), (33, torch.float16)):
        stack = Stack(cell, sizes, hidden, reverse=hidden == 33)
        check(device, stack, dtype, 2, processors=4 if hidden == 33 else 10)


@pytest.mark.parametrize("layers", [3, 4])
def test_more_layers(device, layers):
    for cell in ("lstm", "rnn_tanh"):
        check(device, Stack(cell, [3] * 3, 24, layers), torch.bfloat16, 2)


@pytest.mark.parametrize(
    ("cell", "hidden", "blocks", "batch"),
    [("lstm", 200, 8, 3), ("lstm", 96, 2, 5), ("rnn_tanh", 264, 3, 2)],
)
def test_larger(device, cell, hidden, blocks, batch):
    check(device, Stack(cell, [batch] * 2, hidden), torch.bfloat16, blocks, processors=blocks)


@pytest.mark.parametrize(
    "extras",
    [
        {"resets": 0.3},
        {"zoneout": (0.25, 0.5)},
        {"grads": ["output"], "bias": False},
        {"grads": ["state_n"]},
    ],
    ids=str,
)
def test_extras(device, extras):
    check(device, Stack("lstm", [4, 4, 3, 1], 33, **extras), torch.float16, 3, misalign=1)


def test_nothing_saved(device):
    stack = Stack("lstm", [3, 2], 24)
    found = stack.run(device, torch.float16, 2, save=False, backward=False)
    expected = stack.reference(torch.float64)[1]["output"]
    torch.testing.assert_close(found[1]["output"].double(), expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_any_order_of_threads(device, cell):
    for seed in range(20):
        device.clear()
        device.seed(seed)
        stack = Stack(cell, [3, 3, 3, 2], 17, 2 + seed % 2, seed, resets=0.2)
        check(device, stack, torch.bfloat16, 2, processors=2 + 2 * (seed % 3))


def test_every_barrier_is_missed(device):
    """With any one of them taken out, the emulator finds unordered accesses."""

    def run():
        check(device, Stack("lstm", [3] * 4, 128), torch.bfloat16, 4, processors=4)

    run()
    sites = device.sites()
    assert {site.split(" ", 1)[1] for site in sites} == {
        *("__syncthreads", "__syncwarp", "cluster_arrive's release", "cluster_wait's acquire"),
        *("add_release's release", "wait_at_least's acquire"),
    }
    for site in sites:
        device.clear()
        device.remove(site)
        with pytest.raises(EmulatorError, match="race|never written|a block that ends"):
            run()


def test_a_layer_that_nothing_is_handed_to_is_reported(device):
    stack = Stack("lstm", [2, 2], 9)
    ways = [OnDevice(device, p, torch.bfloat16) for p in stack.layers]
    with pytest.raises(EmulatorError, match="deadlock: .* at a flag"):
        run_side_by_side(ways, "stack", 2)


def fits(device, backward, batch, hidden, blocks, processors):
    kernels, layout = device.persistent_kernels("stack", "lstm", torch.bfloat16), Layout()
    sizes = (batch, hidden, blocks, 1, processors, 227 * 1024)
    return layout if kernels.layout(backward, *sizes, ctypes.byref(layout)) else None


@pytest.mark.parametrize("backward", [False, True])
def test_layouts(device, backward):
    layout = fits(device, backward, 20, 256, 8, 58)
    assert (layout.clusters, layout.tile) == (7, 3)
    assert layout.bytes >= 7 * 4 * (32 if not backward else 16)
    # All clusters run at once: none may queue.
    assert fits(device, backward, 64, 256, 8, 64)
    assert not fits(device, backward, 65, 256, 8, 64)
    assert not fits(device, backward, 20, 650, 16, 66)


def test_what_there_is_no_kernel_for(device):
    for cell, dtype in (("lstm", torch.float32), ("gru", torch.bfloat16)):
        assert device.persistent_kernels("stack", cell, dtype) is None
