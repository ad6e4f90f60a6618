"""The cluster-persistent schedule's CUDA kernels, run by the emulator, against fastrnn.cells."""

import ctypes

import pytest
import torch

from tests.device_recurrence import OnDevice, problem, run_persistent
from tests.emulator import EmulatorError, Layout
from tests.layers import assert_as_close_as_torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = {"T1": [5], "T2B1": [1, 1], "T7": [5] * 7, "ragged": [5, 4, 4, 2, 1], "ended": [3, 3, 0]}
CELLS = {"lstm": 2, "gru": 1, "rnn_tanh": 1, "rnn_relu": 1}  # and their states


def check(device, p, dtype, cluster, misalign=0, **options):
    exact, torchs = p.reference(torch.float64), p.reference(dtype)
    at = OnDevice(device, p, dtype, misalign)
    found = run_persistent(at, "cluster", cluster, **options)
    assert set(found) == {name for name in exact if "bias" not in name}
    for name, ours in found.items():
        floor = 4 * torch.finfo(dtype).eps
        assert_as_close_as_torch(name, ours, torchs[name], exact[name], floor)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_grid(device, cell, dtype, sizes):
    shapes = [(1, 2), (33, 2)]
    # A gradient of relu jumps where a rounding changes a sign, as in many units one does.
    if dtype == torch.bfloat16 and cell != "rnn_relu":
        shapes.append((128, 4))
    for hidden, cluster in shapes:
        # Some sequences a cluster in the last case, all of them in the others.
        processors = 8 if hidden == 128 else cluster
        p = problem(cell, sizes, hidden, reverse=hidden == 33)
        check(device, p, dtype, cluster, processors=processors)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "extras",
    [
        {"resets": 0.3},
        {"zoneout": (0.25, 0.5)},
        {"zoneout": (0.25, 0.5), "training": False},
        {"zoneout": (1.0, 0.0), "resets": 0.5},
    ],
    ids=str,
)
def test_extras(device, cell, reverse, extras):
    if "zoneout" in extras:
        extras = extras | {"zoneout": extras["zoneout"][: CELLS[cell]]}
    for dtype, hidden in ((torch.float32, 33), (torch.bfloat16, 40)):
        check(device, problem(cell, [4, 4, 3, 1], hidden, reverse=reverse, **extras), dtype, 3)


def test_a_table_of_equal_steps(device):
    for reverse in (False, True):
        check(device, problem("gru", [3, 3], 24, reverse=reverse), torch.float16, 2, table=True)


@pytest.mark.parametrize("grads", [["output"], ["state_n"], ["cells"]])
def test_gradients_that_are_absent(device, grads):
    p = problem("lstm", [3, 2], 24, grads=grads, bias=False)
    check(device, p, torch.bfloat16, 2, misalign=2)


# Between them these have one to four warps on a job, and chunks in registers and beyond.
@pytest.mark.parametrize(
    ("cell", "dtype", "hidden", "cluster", "batch"),
    [
        ("lstm", torch.bfloat16, 264, 12, 2),
        ("lstm", torch.bfloat16, 160, 2, 9),
        ("gru", torch.float16, 200, 5, 3),
        ("rnn_tanh", torch.bfloat16, 520, 6, 2),
        ("lstm", torch.float32, 72, 4, 9),
    ],
    ids=str,
)
def test_larger(device, cell, dtype, hidden, cluster, batch):
    check(device, problem(cell, [batch] * 2, hidden), dtype, cluster, processors=cluster)


def test_nothing_saved(device):
    p = problem("lstm", [3, 2], 24)
    at = OnDevice(device, p, torch.float32, save=False)
    output = run_persistent(at, "cluster", 2, backward=False)["output"]
    torch.testing.assert_close(output.double(), p.reference(torch.float64)["output"])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_any_order_of_threads(device, cell):
    for seed in range(20):
        device.clear()
        device.seed(seed)
        p = problem(cell, [3, 2, 1], 17, reverse=seed % 2 == 1, resets=0.2, seed=seed)
        check(device, p, torch.bfloat16, 2 + seed % 3)


def test_every_barrier_is_missed(device):
    """With any one of them taken out, the emulator finds unordered accesses."""

    def run():
        # Two warps share a job, so that every kind of barrier runs.
        p = problem("lstm", [3] * 4, 128)
        check(device, p, torch.bfloat16, 2, processors=2)

    run()
    sites = device.sites()
    assert {site.split(" ", 1)[1] for site in sites} == {
        *("__syncthreads", "__syncwarp", "cluster_arrive's release", "cluster_wait's acquire")
    }
    for site in sites:
        device.clear()
        device.remove(site)
        with pytest.raises(EmulatorError, match="race|never written|a block that ends"):
            run()


def test_what_does_not_fit(device):
    kernels = device.persistent_kernels("cluster", "lstm", torch.bfloat16)
    layout, limit = Layout(), 227 * 1024

    def fits(backward, batch, hidden, cluster, processors=132):
        return kernels.layout(
            backward, batch, hidden, cluster, processors, limit, ctypes.byref(layout)
        )

    for backward in (False, True):
        assert fits(backward, 20, 256, 8) and (layout.clusters, layout.tile) == (10, 2)
        assert fits(backward, 20, 650, 16) and (layout.clusters, layout.tile) == (7, 3)
        assert not fits(backward, 20, 1500, 16)
        assert not fits(backward, 20, 256, 1) and not fits(backward, 20, 256, 17)
        assert not fits(backward, 20, 256, 16, processors=15)
        assert not fits(backward, 0, 256, 8)
    assert device.persistent_kernels("cluster", "lstm", torch.float64) is None
    assert device.persistent_kernels("cluster", "gru_reset_before", torch.float32) is None
