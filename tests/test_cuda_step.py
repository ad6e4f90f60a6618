"""The step schedule's CUDA kernels, run by the emulator, against fastrnn.cells."""

import pytest
import torch

from fastrnn.cells import CELLS, COMPILED
from tests.device_recurrence import OnDevice, run_steps
from tests.emulator import DTYPES
from tests.layers import assert_as_close_as_torch
from tests.recurrence_problems import EXTRAS, problem

# float64 is what the others are held against, and only rounds elsewhere.
FLOORS = {d: (64 if d == torch.float64 else 4) * torch.finfo(d).eps for d in DTYPES}
SIZES = {"T1": [5], "T2B1": [1, 1], "T7": [5] * 7, "ragged": [5, 4, 4, 2, 1], "ended": [3, 3, 0]}
CELL_NAMES = [name for name in CELLS if name in COMPILED]


def check(device, p, dtype, **options):
    exact, torchs = p.reference(torch.float64), p.reference(dtype)
    found = run_steps(OnDevice(device, p, dtype, **options))
    assert set(found) == {name for name in exact if "bias" not in name}
    for name, ours in found.items():
        assert_as_close_as_torch(name, ours, torchs[name], exact[name], FLOORS[dtype])


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_grid(device, cell, dtype, sizes):
    for hidden in (1, 33, 128):
        check(device, problem(cell, sizes, hidden, reverse=hidden == 33), dtype)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELL_NAMES)
@pytest.mark.parametrize("extras", EXTRAS, ids=str)
def test_extras(device, cell, reverse, extras):
    if "zoneout" in extras:
        extras = extras | {"zoneout": extras["zoneout"][: CELLS[cell].states]}
    for dtype, hidden in ((torch.float64, 33), (torch.float32, 32), (torch.bfloat16, 32)):
        check(device, problem(cell, [4, 4, 3, 1], hidden, reverse=reverse, **extras), dtype)


@pytest.mark.parametrize("grads", [["output"], ["state_n"], ["cells"]])
def test_gradients_that_are_absent(device, grads):
    check(device, problem("lstm", [3, 2], 24, grads=grads, bias=False), torch.float32)


def test_misaligned_tensors(device):
    for cell in CELL_NAMES:
        check(device, problem(cell, [3, 2], 32), torch.float16, misalign=1)


def test_nothing_saved(device):
    for cell in CELL_NAMES:
        p = problem(cell, [3, 2], 32)
        at = OnDevice(device, p, torch.float64, save=False)
        output = run_steps(at, backward=False)["output"]
        torch.testing.assert_close(output, p.reference(torch.float64)["output"])


def test_any_order_of_threads(device):
    for seed in range(20):
        device.clear()
        device.seed(seed)
        check(device, problem("gru_reset_before", [2, 1], 9, resets=0.3, seed=seed), torch.float32)
