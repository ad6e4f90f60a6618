"""The persistent schedules' CUDA kernels, run by the emulator, against fastrnn.cells."""

import ctypes

import pytest
import torch

from tests.device_recurrence import OnDevice, run_persistent, run_side_by_side
from tests.emulator import EmulatorError, Layout
from tests.layers import assert_as_close_as_torch
from tests.recurrence_problems import EXTRAS, problem

HALVES = (torch.float16, torch.bfloat16)
KINDS = [
    ("cluster", torch.float32, False),
    *((s, torch.float32, True) for s in ("cluster", "grid")),
    *((s, d, False) for s in ("cluster", "grid") for d in HALVES),
]  # schedule, dtype, by TF32
SIZES = {"T1": [5], "T2B1": [1, 1], "T7": [5] * 7, "ragged": [5, 4, 4, 2, 1], "ended": [3, 3, 0]}
OF_CLUSTER = {"cluster_arrive's release", "cluster_wait's acquire"}
BARRIERS = {
    "cluster": {"__syncthreads", "__syncwarp", *OF_CLUSTER},
    "grid": {
        *("__syncthreads", "__syncwarp", "wait_copies"),
        *("add_release's release", "wait_at_least's acquire"),
    },
}
# And their states.
CELLS = {"lstm": 2, "gru": 1, "gru_reset_before": 1, "rnn_tanh": 1, "rnn_relu": 1}


def check(device, schedule, p, dtype, blocks, misalign=0, **options):
    at = OnDevice(device, p, dtype, misalign)
    compare(run_persistent(at, schedule, blocks, **options), p, dtype, options.get("tf32", False))


def compare(found, p, dtype, tf32=False):
    exact, torchs = p.reference(torch.float64), p.reference(dtype)
    assert set(found) == {name for name in exact if "bias" not in name}
    floor = 4 * (2**-10 if tf32 else torch.finfo(dtype).eps)
    for name, ours in found.items():
        assert_as_close_as_torch(name, ours, torchs[name], exact[name], floor)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("schedule", "dtype", "tf32"), KINDS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_shapes(device, cell, schedule, dtype, tf32, sizes):
    shapes = [(1, 2), (33, 2)]
    # A gradient of relu jumps where a rounding changes a sign, as in many units one does.
    if dtype == torch.bfloat16 and cell != "rnn_relu":
        shapes.append((128, 4))
    for hidden, blocks in shapes:
        # Some sequences a cluster in the last case, all of them in the others.
        processors = 8 if hidden == 128 else blocks
        p = problem(cell, sizes, hidden, reverse=hidden == 33)
        check(device, schedule, p, dtype, blocks, processors=processors, tf32=tf32)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("extras", EXTRAS, ids=str)
@pytest.mark.parametrize("schedule", BARRIERS)
def test_extras(device, schedule, cell, reverse, extras):
    if "zoneout" in extras:
        extras = extras | {"zoneout": extras["zoneout"][: CELLS[cell]]}
    dtype, hidden = torch.float16 if reverse else torch.bfloat16, 33 if reverse else 40
    sizes = [10, 10, 3, 1] if schedule == "grid" else [4, 4, 3, 1]
    check(device, schedule, problem(cell, sizes, hidden, reverse=reverse, **extras), dtype, 3)


def test_extras_in_float32(device):
    p = problem("lstm", [4, 4, 3, 1], 33, resets=0.3, zoneout=(0.25, 0.5))
    check(device, "cluster", p, torch.float32, 3)


def test_a_table_of_equal_steps(device):
    for reverse in (False, True):
        for schedule in BARRIERS:
            p = problem("gru", [3, 3], 24, reverse=reverse)
            check(device, schedule, p, torch.float16, 2, table=True)


@pytest.mark.parametrize("schedule", BARRIERS)
@pytest.mark.parametrize("grads", [["output"], ["state_n"], ["cells"]])
def test_gradients_that_are_absent(device, schedule, grads):
    p = problem("lstm", [3, 2], 24, grads=grads, bias=False)
    check(device, schedule, p, torch.bfloat16, 2, misalign=1)


# Between them these have one warp to many on a job, chunks in registers and beyond, several tiles.
@pytest.mark.parametrize(
    ("schedule", "cell", "dtype", "hidden", "blocks", "batch"),
    [
        ("cluster", "lstm", torch.bfloat16, 264, 12, 2),
        ("cluster", "lstm", torch.bfloat16, 160, 2, 9),
        ("cluster", "gru", torch.float16, 200, 5, 3),
        ("cluster", "gru", torch.bfloat16, 136, 16, 3),
        ("cluster", "gru_reset_before", torch.bfloat16, 200, 3, 3),
        ("cluster", "rnn_tanh", torch.bfloat16, 520, 6, 2),
        ("cluster", "lstm", torch.float32, 72, 4, 9),
        ("cluster", "gru_reset_before", torch.float32, 72, 4, 9),
        ("grid", "lstm", torch.bfloat16, 264, 20, 2),
        ("grid", "lstm", torch.bfloat16, 160, 2, 17),
        ("grid", "gru", torch.float16, 200, 9, 9),
        ("grid", "gru_reset_before", torch.float16, 264, 4, 17),
        ("grid", "rnn_tanh", torch.bfloat16, 520, 7, 2),
    ],
    ids=str,
)
def test_larger(device, schedule, cell, dtype, hidden, blocks, batch):
    check(device, schedule, problem(cell, [batch] * 2, hidden), dtype, blocks, processors=blocks)


@pytest.mark.parametrize(
    ("schedule", "cell", "hidden", "blocks", "batch"),
    [
        ("cluster", "lstm", 200, 7, 3),
        ("cluster", "gru", 160, 2, 2),
        ("grid", "lstm", 136, 9, 9),
        ("grid", "gru", 72, 3, 20),
        ("grid", "gru_reset_before", 200, 5, 2),
    ],
)
def test_tf32(device, schedule, cell, hidden, blocks, batch):
    """Within TF32's roundings, and not within float32's."""
    p = problem(cell, [batch] * 2, hidden)
    check(device, schedule, p, torch.float32, blocks, processors=blocks, tf32=True)
    device.clear()
    found = run_persistent(
        OnDevice(device, p, torch.float32), schedule, blocks, processors=blocks, tf32=True
    )
    error = (found["output"].double() - p.reference(torch.float64)["output"]).abs().max()
    assert 1e-6 < error < 1e-3


@pytest.mark.parametrize("schedule", BARRIERS)
@pytest.mark.parametrize("sizes", [[5, 5, 5], [5, 4, 4, 2, 1]], ids=["padded", "ragged"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_both_directions_in_one_launch(device, schedule, sizes, cell):
    for seed in (0, 1, 2):
        device.clear()
        device.seed(seed)
        ways = [
            problem(cell, sizes, 33, reverse=reverse, resets=0.2, seed=int(reverse))
            for reverse in (False, True)
        ]
        at = [OnDevice(device, p, torch.bfloat16) for p in ways]
        for found, p in zip(run_side_by_side(at, schedule, 3, processors=6), ways, strict=True):
            compare(found, p, torch.bfloat16)


@pytest.mark.parametrize("schedule", BARRIERS)
def test_nothing_saved(device, schedule):
    p = problem("lstm", [3, 2], 24)
    at = OnDevice(device, p, torch.float16, save=False)
    output = run_persistent(at, schedule, 2, backward=False)["output"]
    expected = p.reference(torch.float64)["output"]
    torch.testing.assert_close(output.double(), expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("schedule", "share"), [("cluster", 1), ("grid", 1), ("grid", 2)])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_any_order_of_threads(device, schedule, share, cell):
    for seed in range(20):
        device.clear()
        device.seed(seed)
        p = problem(cell, [3, 2, 1], 17, reverse=seed % 2 == 1, resets=0.2, seed=seed)
        check(
            device,
            schedule,
            p,
            torch.bfloat16,
            2 * share if share > 1 else 2 + seed % 2,
            share=share,
        )


@pytest.mark.parametrize(("schedule", "share"), [("cluster", 1), ("grid", 1), ("grid", 2)])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_every_barrier_is_missed(device, schedule, share, cell):
    """With any one of them taken out, the emulator finds unordered accesses."""

    def run():
        # Several warps share a job and a warp has several tiles' gates, so that all are needed.
        batch = 3 if schedule == "cluster" else 33 if share == 1 else 64
        p = problem(cell, [batch] * 3, 128 // share)
        options = {"processors": 2, "share": share}
        check(device, schedule, p, torch.bfloat16, 2, **options)

    run()
    sites = device.sites()
    kinds = BARRIERS[schedule] | (OF_CLUSTER if share > 1 else set())
    assert {site.split(" ", 1)[1] for site in sites} == kinds
    for site in sites:
        device.clear()
        device.remove(site)
        with pytest.raises(EmulatorError, match="race|never written|a block that ends"):
            run()


@pytest.mark.parametrize("share", [2, 4])
@pytest.mark.parametrize("cell", CELLS)
def test_blocks_share_k(device, cell, share):
    for seed, (hidden, sizes, dtype) in enumerate(
        [
            (33, [5, 4, 4, 2, 1], torch.float16),
            (40, [10, 10, 3], torch.bfloat16),
            (160, [17] * 2, torch.bfloat16),
        ]
    ):
        device.clear()
        device.seed(seed)
        p = problem(cell, sizes, hidden, reverse=hidden == 33, resets=0.2)
        if cell != "rnn_relu" or hidden < 100:
            check(device, "grid", p, dtype, 8 if hidden > 100 else 4, share=share)


def fits(device, schedule, backward, batch, hidden, blocks, share=1, processors=132):
    kernels, layout = device.persistent_kernels(schedule, "lstm", torch.bfloat16), Layout()
    found = kernels.layout(
        backward, batch, hidden, blocks, share, processors, 227 * 1024, ctypes.byref(layout)
    )
    return layout if found else None


@pytest.mark.parametrize("backward", [False, True])
def test_layouts_of_clusters(device, backward):
    layout = fits(device, "cluster", backward, 20, 256, 8)
    assert (layout.clusters, layout.tile) == (10, 2)
    layout = fits(device, "cluster", backward, 20, 650, 16)
    assert (layout.clusters, layout.tile) == (7, 3)
    assert not fits(device, "cluster", backward, 20, 1500, 16)
    assert not fits(device, "cluster", backward, 20, 256, 1)
    assert not fits(device, "cluster", backward, 20, 256, 17)
    assert not fits(device, "cluster", backward, 20, 256, 16, processors=15)
    assert not fits(device, "cluster", backward, 0, 256, 8)


@pytest.mark.parametrize("backward", [False, True])
def test_layouts_of_the_grid(device, backward):
    layout = fits(device, "grid", backward, 20, 1500, 132)
    assert (layout.cluster, layout.clusters, layout.tile) == (94, 1, 8)
    assert layout.bytes >= 2 * 20 * 1500 * (4 if backward else 1) * 2
    layout = fits(device, "grid", backward, 20, 1500, 116, 4)
    assert (layout.cluster, layout.share) == (96, 4)
    assert not fits(device, "grid", backward, 20, 1500, 118, 4)
    assert not fits(device, "cluster", backward, 20, 256, 8, 2)
    assert not fits(device, "grid", backward, 20, 3000, 132)
    assert not fits(device, "grid", backward, 65, 1500, 132)
    assert not fits(device, "grid", backward, 20, 1500, 132, processors=131)


def test_gates_of_16_bit_dtypes(device):
    """What the kernels take for sigmoid and tanh, beside the numbers of 16 bits."""
    size = torch.cat([torch.logspace(-30, 1.9, 2000), torch.linspace(0, 2, 2001)])
    x = device.put(torch.cat([size, -size]))
    found = [device.empty(x.shape, torch.float32) for _ in range(2)]
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, *found)]
    device.library.test_rough(*pointers, x.numel())
    for ours, exact in zip(found, (x.double().sigmoid(), x.double().tanh()), strict=True):
        assert ((ours - exact).abs() <= 1e-5 * exact.abs()).all()  # 2^-12 in float16
    ends = device.put(torch.tensor([-torch.inf, torch.inf, torch.nan, -0.0]))
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (ends, *found)]
    device.library.test_rough(*pointers, 4)
    assert found[0][:2].tolist() == [0, 1] and found[1][:2].tolist() == [-1, 1]
    assert found[0][2].isnan() and found[1][2].isnan()
    assert found[1][3] == 0 and found[1][3].signbit()


def test_what_there_is_no_kernel_for(device):
    assert device.persistent_kernels("cluster", "lstm", torch.float64) is None
    assert device.persistent_kernels("grid", "lstm", torch.float32) is None
