"""Which CUDA schedule runs, from sizes alone: no device is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastrnn
from fastrnn import _cuda, _kernels, _library, backends
from fastrnn.cells import CELLS, COMPILED

module = pytest.importorskip("fastrnn._C", reason="no compiled module")
plan = module.plan

H200 = {"capability": 90, "processors": 132, "shared_memory": 232448}
A100 = {"capability": 80, "processors": 108, "shared_memory": 166912}
ADA = {"capability": 89, "processors": 142, "shared_memory": 101376}
RTX = {"capability": 120, "processors": 188, "shared_memory": 101376}
T4 = {"capability": 75, "processors": 40, "shared_memory": 65536}


@pytest.mark.parametrize(
    "device", [H200, A100, ADA, RTX, T4], ids=["H200", "A100", "Ada", "RTX", "T4"]
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("cell", sorted(COMPILED))
def test_one_schedule_runs_and_every_other_has_a_reason(cell, dtype, device):
    found = plan(cell, dtype, 35, 20, 650, **device)
    assert found["schedule"] in _cuda.SCHEDULES
    assert set(found["refused"]) == set(_cuda.SCHEDULES) - {found["schedule"]}
    assert all(found["refused"].values())
    assert found["text"].startswith(found["schedule"])
    assert found["shared"] <= device["shared_memory"]
    if found["schedule"] != "step":
        assert found["cluster"] * found["clusters"] <= device["processors"]
        assert found["threads"] % 32 == 0
    if found["schedule"] == "cluster":
        assert 20 <= found["tile"] * found["clusters"] < 20 + found["tile"]
    if found["schedule"] == "grid":
        assert (found["tile"], found["clusters"]) == (8, 1)
        assert found["workspace"] > 2 * 20 * 650 * 2  # both of the rows that blocks exchange


def test_a_launch_that_was_refused_is_not_planned_again():
    size, words = ("lstm", "bfloat16", 35, 20, 256), "too many blocks in cooperative launch"
    why = f"could not be launched here: {words}"
    found = plan(*size, failed={"cluster": words}, **H200)
    assert found["schedule"] == "grid" and found["refused"]["cluster"] == why
    found = plan(*size, failed=dict.fromkeys(_cuda.LAUNCHES, words), **H200)
    assert found["schedule"] == "step" and found["refused"]["grid"] == why
    assert plan(*size, failed={"layers": words}, **H200) == plan(*size, **H200)
    assert plan(*size, layers=2, **H200)["layers"] == 2
    found = plan(*size, layers=2, failed={"layers": words}, **H200)
    assert found["layers"] == 1 and found["apart"] == why
    assert plan(*size, layers=2, failed={"cluster": words}, **H200)["layers"] == 2


def test_launches_have_not_failed_here():
    told = torch.ops.fastrnn.cuda_launch_failure.default
    assert [told(0, launch) for launch in _cuda.LAUNCHES] == [""] * len(_cuda.LAUNCHES)
    with pytest.raises(RuntimeError, match="must be cluster, grid or layers, got 'steps'"):
        told(0, "steps")


def test_step_runs_where_nothing_else_does():
    found = plan("lstm", "float64", 35, 20, 4096, **H200)
    assert found["schedule"] == "step"
    assert found["refused"]["cluster"] == "has no float64 kernels"
    found = plan("lstm", "bfloat16", 35, 20, 256, **A100)
    assert found["refused"]["cluster"] == (
        "needs compute capability 9.0 (thread-block clusters), the device has 8.0"
    )
    found = plan("lstm", "bfloat16", 35, 20, 256, **T4)
    assert found["schedule"] == "step"
    assert found["refused"]["grid"] == "needs compute capability 8.0, the device has 7.5"


def test_clusters_share_the_batch_where_the_weights_fit():
    found = plan("lstm", "bfloat16", 35, 20, 650, **H200)
    assert (found["schedule"], found["cluster"], found["tile"]) == ("cluster", 16, 3)
    assert found["clusters"] == 7
    assert found["text"].startswith("cluster: whole sequence in one kernel, 7 x 16 blocks of ")
    assert found["refused"]["step"] == "slower than cluster"
    # Two directions side by side have half of the device each.
    both = plan("lstm", "bfloat16", 35, 20, 650, directions=2, **H200)
    assert (both["cluster"], both["clusters"], both["tile"], both["at_once"]) == (16, 4, 5, 2)
    assert both["text"].startswith("cluster: whole sequence in one kernel, both directions at once")
    small = plan("lstm", "bfloat16", 35, 20, 200, **H200)
    assert small["schedule"] == "cluster"
    assert small["cluster"] < 16


def test_clusters_that_run_at_once_are_the_devices():
    """A cluster lies within a group of multiprocessors: four blocks fit 32 times, not 33."""
    size = ("lstm", "bfloat16", 35)
    known = plan(*size, 33, 200, clusters=(66, 32, 16, 8), **H200)
    assert known == plan(*size, 33, 200, **H200)
    for batch in (20, 32, 33, 64):
        for layers, directions in ((1, 1), (2, 1), (1, 2)):
            found = plan(*size, batch, 200, layers=layers, directions=directions, **H200)
            at_once = {2: 64, 4: 32, 8: 16, 16: 8}[found["cluster"]]
            ways = found["layers"] if found["layers"] > 1 else found["at_once"]
            assert found["clusters"] <= at_once // ways, found
    # A part of a device whose groups hold eight.
    part = plan(*size, 20, 200, capability=90, processors=24, shared_memory=232448)
    assert part["schedule"] == "cluster"
    part = plan(*size, 20, 650, clusters=(12, 6, 3, 0), **H200)
    assert part["schedule"] == "grid"
    both = plan(*size, 20, 650, backward=True, directions=2, clusters=(32, 16, 8, 4), **H200)
    assert both["share"] * both["clusters"] <= 64


def test_the_grid_takes_what_no_cluster_holds():
    found = plan("lstm", "bfloat16", 35, 20, 1500, **H200)
    assert (found["schedule"], found["tile"]) == ("grid", 8)
    assert found["cluster"] > 16
    assert found["refused"]["step"] == "slower than grid"
    crowd = plan("lstm", "bfloat16", 35, 65, 1500, **H200)
    assert (crowd["schedule"], crowd["refused"]["grid"]) == ("step", "takes at most 64 sequences")
    single = plan("lstm", "float32", 35, 20, 1500, **H200)
    assert single["refused"]["grid"] == "has no exact float32 kernels, and TF32 is not allowed"
    loose = plan("lstm", "tf32", 35, 20, 1500, **H200)
    assert loose["refused"]["grid"].startswith("does not fit: W_hh is [6000, 1500]")
    assert plan("lstm", "tf32", 35, 20, 650, **H200)["schedule"] == "grid"
    huge = plan("lstm", "bfloat16", 35, 20, 5000, **H200)
    assert huge["refused"]["grid"] == (
        "does not fit: W_hh is [20000, 5000], all 132 blocks have 30683136 bytes"
    )


def test_directions_that_do_not_fit_side_by_side_take_turns():
    one = plan("lstm", "bfloat16", 35, 20, 1500, **H200)
    assert plan("lstm", "bfloat16", 35, 20, 1500, directions=2, **H200) == one
    assert (one["schedule"], one["at_once"]) == ("grid", 1)


def test_blocks_share_k_where_reading_would_set_the_pace():
    options = {"backward": True, **H200}
    back = plan("lstm", "bfloat16", 35, 20, 1500, **options)
    assert (back["schedule"], back["share"], back["cluster"]) == ("grid", 4, 96)
    assert plan("lstm", "bfloat16", 35, 20, 1500, **H200)["share"] == 1
    old = plan("lstm", "bfloat16", 35, 20, 1500, backward=True, **A100)
    assert old["share"] <= 1  # no clusters


def test_two_products_a_step():
    for hidden, schedule in ((200, "cluster"), (650, "cluster"), (1500, "grid")):
        found = plan("gru_reset_before", "bfloat16", 35, 20, hidden, **H200)
        assert found["schedule"] == schedule
        back = plan("gru_reset_before", "bfloat16", 35, 20, hidden, backward=True, **H200)
        assert back["schedule"] == schedule
    # Backward the two products read places of their own in one buffer.
    assert (
        back["workspace"]
        < plan("gru", "bfloat16", 35, 20, 1500, backward=True, **H200)["workspace"]
    )


def test_tf32_is_as_wide_as_float32():
    for hidden in (200, 256, 400):
        found = plan("lstm", "tf32", 35, 20, hidden, **H200)
        assert found["schedule"] == "cluster"
        exact = plan("lstm", "float32", 35, 20, hidden, **H200)
        assert exact["schedule"] == "cluster"
    assert plan("lstm", "float32", 35, 20, 650, **H200)["schedule"] == "step"


def test_what_does_not_fit_says_so():
    found = plan("lstm", "float32", 35, 20, 1500, **H200)
    assert found["schedule"] == "step"
    assert found["refused"]["cluster"] == (
        "does not fit: W_hh is [6000, 1500], a cluster's 16 blocks have 3719168 bytes"
    )
    found = plan("lstm", "bfloat16", 35, 20, 650, **H200 | {"shared_memory": 101376})
    assert "does not fit" in found["refused"]["cluster"]
    found = plan("lstm", "bfloat16", 35, 20, 650, **H200 | {"processors": 8})
    assert "does not fit" in found["refused"]["cluster"]
    found = plan("lstm", "bfloat16", 35, 20, 650, **RTX)
    assert found["refused"]["cluster"].endswith("a cluster's 8 blocks have 811008 bytes")


def test_clusters_that_would_queue_are_slower_than_steps():
    assert plan("gru", "bfloat16", 35, 4096, 256, **H200)["refused"]["cluster"] == (
        "slower than step"
    )


@pytest.mark.parametrize(
    ("option", "reason"),
    [("layer_norm", "has no layer normalisation"), ("projected", "has no projection of h")],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_options_that_need_whole_rows_run_by_steps(option, reason, dtype):
    found = plan("lstm", dtype, 35, 20, 200, directions=2, **{option: True}, **H200)
    assert (found["schedule"], found["at_once"]) == ("step", 1)
    assert found["refused"] == {"cluster": reason, "grid": reason}
    asked = plan("lstm", dtype, 35, 20, 200, schedule="grid", **{option: True}, **H200)
    assert (asked["schedule"], asked["refused"]["grid"]) == ("", reason)
    assert asked["text"] == "no CUDA schedule"
    assert found["elements"] == 35 * 20 * 200 * (14 if option == "layer_norm" else 6)


def test_a_schedule_that_was_asked_for_runs_or_is_refused():
    found = plan("lstm", "bfloat16", 35, 20, 256, schedule="step", **H200)
    assert found["schedule"] == "step"
    found = plan("lstm", "float64", 35, 20, 256, schedule="cluster", **H200)
    assert found["schedule"] == ""
    assert found["refused"]["step"] == "cluster was asked for"
    assert found["refused"]["cluster"] == "has no float64 kernels"


@pytest.mark.parametrize("cell", sorted(COMPILED))
def test_sizes_are_64_bit(cell):
    c = CELLS[cell]
    widest = max(c.gates, c.reserve + c.states)
    for steps, batch, hidden in (
        (1, 1, 1),
        (35, 20, 650),
        (2**11, 2**11, 2**11),
        (2**20,) * 2 + (2**12,),
    ):
        found = plan(cell, "bfloat16", steps, batch, hidden, **H200)
        assert found["elements"] == steps * batch * hidden * widest
    with pytest.raises(
        ValueError, match=r"T\*B\*H must be below 2\^60 .*, got T=\d+, B=\d+, H=\d+"
    ):
        plan(cell, "bfloat16", 2**31, 2**31, 2**31, **H200)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": "grue"}, "no compiled cell is called 'grue'"),
        ({"dtype": "int8"}, "dtype must be .*, got 'int8'"),
        ({"batch": 0}, "T, B and H must be positive, got T=35, B=0, H=200"),
        ({"hidden_size": -1}, "got T=35, B=20, H=-1"),
        ({"directions": 3}, "directions must be 1 or 2, got 3"),
        ({"schedule": "fast"}, "schedule must be auto, cluster, grid or step, got 'fast'"),
        ({"processors": 0}, "the device must have"),
    ],
)
def test_bad_requests_are_one_line(changes, message):
    request = {"cell": "gru", "dtype": "float32", "steps": 35, "batch": 20, "hidden_size": 200}
    with pytest.raises(ValueError, match=f"^plan: .*{message}") as caught:
        plan(**(request | H200 | changes))
    assert "\n" not in str(caught.value)


class OnGpu:
    """As much of a CUDA tensor as the choice of a backend looks at."""

    __class__ = torch.Tensor  # to isinstance
    is_cuda = True

    def __init__(self, dtype=torch.bfloat16, shape=(35, 20, 200)):
        self.dtype, self.shape, self.device = dtype, shape, torch.device("cuda", 3)

    def dim(self):
        return len(self.shape)


native = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")


@native
def test_explain_shows_the_schedule(monkeypatch):
    monkeypatch.setattr(_cuda, "_known", {3: _cuda.Facts(**H200)})
    lines = fastrnn.explain(fastrnn.LSTM(200, 200), OnGpu()).splitlines()
    expected = plan("lstm", "bfloat16", 35, 20, 200, **H200)
    assert lines[0] == f"native: runs lstm ({expected['text']})"
    for name, why in expected["refused"].items():
        assert f"{name} schedule: no, {why}" in lines
    assert "reference: no, slower than native" in lines
    batch_first = fastrnn.LSTM(200, 200, batch_first=True)
    with _cuda.use_schedule("step"):
        lines = fastrnn.explain(batch_first, OnGpu(shape=(20, 35, 200))).splitlines()
    assert lines[0].startswith("native: runs lstm (step: ")
    for options, reason in (
        ({"layer_norm": True}, "has no layer normalisation"),
        ({"proj_size": 50}, "has no projection of h"),
    ):
        lines = fastrnn.explain(fastrnn.LSTM(200, 200, **options), OnGpu()).splitlines()
        assert lines[0] == "native: runs lstm (step: a product and a fused kernel per step)"
        assert f"cluster schedule: no, {reason}" in lines


@native
def test_explain_shows_layers_in_one_launch(monkeypatch):
    monkeypatch.setattr(_cuda, "_known", {3: _cuda.Facts(**H200)})
    lines = fastrnn.explain(fastrnn.LSTM(200, 200, 2), OnGpu()).splitlines()
    assert lines[0].startswith("native: runs lstm (cluster: whole sequence in one kernel, 2 layers")
    why = {
        "GRU": "needs a cell whose state and input have the same gates' gradients",
        "LSTM": "one launch has no dropout",
    }
    for kind, options in (("GRU", {}), ("LSTM", {"dropout": 0.5})):
        text = fastrnn.explain(getattr(fastrnn, kind)(200, 200, 2, **options), OnGpu())
        assert f"layers in one launch: no, {why[kind]}" in text.splitlines()


@native
@pytest.mark.parametrize(
    ("known", "dtype", "reason"),
    [
        (_cuda.Facts(**H200), torch.complex64, "take float16, bfloat16, float32 and float64"),
        ("this build has no CUDA kernels", torch.float32, "this build has no CUDA kernels"),
    ],
)
def test_native_refuses_a_device_with_a_reason(monkeypatch, known, dtype, reason):
    monkeypatch.setattr(_cuda, "_known", {3: known})
    choice = backends.choose(OnGpu(dtype))
    triton = _kernels.TRITON is not None and dtype is torch.float32
    assert choice.backend == ("triton" if triton else "reference")
    assert reason in choice.refused["native"]


@native
@pytest.mark.parametrize("feature", ["proj_size", "layer_norm"])
def test_what_the_triton_kernels_lack_is_named(monkeypatch, feature):
    monkeypatch.setattr(_cuda, "_known", {3: _cuda.Facts(**H200)})
    choice = backends.choose(OnGpu(torch.float32), features=[feature])
    assert choice.backend == "native"
    if _kernels.TRITON is not None:
        assert choice.refused["triton"] == f"the Triton kernels have no {feature}"


@native
def test_a_device_without_code_is_named(monkeypatch):
    class Operator:
        @staticmethod
        def default(index):
            return [7, 5, 40, 65536, 0, 0, 0, 0, 0]

    monkeypatch.setattr(torch.ops.fastrnn, "cuda_device", Operator)
    monkeypatch.setattr(_cuda, "_known", {})
    assert _cuda.facts(0) == "this build has no code for compute capability 7.5"
    monkeypatch.setattr(Operator, "default", lambda index: [9, 0, 132, 232448, 66, 32, 16, 8, 1])
    assert _cuda.facts(1) == _cuda.Facts(90, 132, 232448, (66, 32, 16, 8))


def test_use_schedule_is_a_call_and_a_context():
    assert _cuda.schedule_asked() == "auto"
    with _cuda.use_schedule("grid"):
        assert _cuda.schedule_asked() == "grid"
        with _cuda.use_schedule("auto"):
            assert _cuda.schedule_asked() == "auto"
        assert _cuda.schedule_asked() == "grid"
    assert _cuda.schedule_asked() == "auto"
    with pytest.raises(ValueError, match="use_schedule: schedule must be one of .*, got 'fast'"):
        _cuda.use_schedule("fast")


def test_schedules_of_blocks_that_overlap_leave_nothing_behind():
    first, second = _cuda.use_schedule("grid"), _cuda.use_schedule("step")
    first.__exit__()  # as threads may order it
    assert _cuda.schedule_asked() == "step"
    second.__exit__()
    assert _cuda.schedule_asked() == "auto"


def test_the_environment_chooses_or_is_named():
    code = (
        "import fastrnn; fastrnn.explain(fastrnn.RNN(2, 3)); print(fastrnn._cuda.schedule_asked())"
    )
    for name, said in (("step", "step"), ("fast", "FASTRNN_SCHEDULE: schedule must be one of")):
        found = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"FASTRNN_SCHEDULE": name},
            cwd=Path(fastrnn.__file__).parent.parent,
            capture_output=True,
            text=True,
        )
        assert said in (found.stdout + found.stderr).splitlines()[-1]


def stacked(hidden, layers=2, steps=35, cell="lstm", dtype="bfloat16", device=H200, **options):
    return plan(cell, dtype, steps, 20, hidden, layers=layers, **options, **device)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("hidden", [200, 256])
def test_layers_in_one_launch_where_they_fit(hidden, backward):
    found = stacked(hidden, backward=backward)
    assert (found["schedule"], found["layers"], found["apart"]) == ("cluster", 2, "")
    assert found["text"].startswith("cluster: whole sequence in one kernel, 2 layers at once, each")
    for layers in (2, 3, 4):
        found = stacked(hidden, layers, backward=backward)
        assert found["layers"] == layers
        # All clusters run at once, eight groups of 16 processors or a little more.
        assert layers * found["clusters"] * found["cluster"] <= 8 * 16
        assert found["tile"] * found["clusters"] >= 20


def test_layers_that_run_one_by_one_say_why():
    def apart(*args, **options):
        found = stacked(*args, **options)
        assert found["layers"] == 1
        return found["apart"]

    assert apart(650) == (
        "do not all fit at once: 2 layers of [2600, 1300] and 20 sequences on 132 processors"
    )
    assert apart(200, steps=4) == "slower than one by one"
    assert apart(200, 5) == "one launch has at most 4 layers"
    assert apart(200, dtype="float32") == "takes float16 and bfloat16"
    for schedule in ("cluster", "step"):
        assert apart(200, schedule=schedule) == f"{schedule} was asked for"
    for cell in ("gru", "gru_reset_before"):
        gates = "needs a cell whose state and input have the same gates' gradients"
        assert apart(200, cell=cell) == gates
    assert apart(200, device=A100).startswith("needs compute capability 9.0")
    crowd = plan("lstm", "bfloat16", 35, 200, 200, layers=2, **H200)
    assert crowd["apart"].startswith("do not all fit at once")
    # What runs one by one is planned as if it were alone.
    alone = plan("lstm", "bfloat16", 35, 20, 650, **H200)
    assert stacked(650) == alone | {"apart": apart(650)}


def test_layers_are_of_one_direction():
    for options in ({"layers": 0}, {"layers": 2, "directions": 2}):
        with pytest.raises(ValueError, match="plan: layers must be positive, and of one direction"):
            plan("lstm", "bfloat16", 35, 20, 200, **options, **H200)
