"""The cluster-persistent schedule's CUDA kernels, run by the emulator, against fastrnn.cells."""

import pytest
import torch

from tests.device_recurrence import OnDevice, problem, run_persistent
from tests.emulator import EmulatorError
from tests.layers import assert_as_close_as_torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = {"T1": [5], "T2B1": [1, 1], "T7": [5] * 7, "ragged": [5, 4, 4, 2, 1]}
CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def check(device, p, dtype, cluster, **options):
    exact, torchs = p.reference(torch.float64), p.reference(dtype)
    found = run_persistent(OnDevice(device, p, dtype), "cluster", cluster, **options)
    assert set(found) == {name for name in exact if "bias" not in name}
    for name, ours in found.items():
        floor = 4 * torch.finfo(dtype).eps
        assert_as_close_as_torch(name, ours, torchs[name], exact[name], floor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_small(device, cell, dtype):
    check(device, problem(cell, [3] * 3, 33), dtype, 2)
