"""The Triton kernels against the reference: on a GPU, and interpreted on the CPU.

Triton decides when it is imported whether it interprets, so the tests on CPU tensors run in a
process of their own, which `test_interpreted` starts.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

import fastrnn
from fastrnn import _kernels, ops
from fastrnn.cells import CELLS, COMPILED
from fastrnn.triton_ops import TritonRecurrence
from tests.layers import assert_all_as_close_as_torch, everything, random_layer

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs the triton package", allow_module_level=True)

pytestmark = pytest.mark.triton
INTERPRETED = _kernels.INTERPRETED
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu"] if INTERPRETED else [pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])]
on_devices = pytest.mark.parametrize("device", DEVICES)
COMPILED_CELLS = [name for name in CELLS if name in COMPILED]
SCHEDULES = ("by_sequence", "by_step")
# A few roundings of each dtype, relative to the largest value.
FLOORS = {
    torch.float64: 2e-14,
    torch.float32: 1e-6,
    torch.float16: 4 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps,
}


if not INTERPRETED:

    def test_interpreted():
        """Everything below, and the cells, on CPU tensors."""
        more = (__file__.replace(".py", f"_{name}.py") for name in ("cells", "attention", "masks"))
        files = [__file__, *more]
        found = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files],
            env=os.environ | {"TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
        )
        assert found.returncode == 0, found.stdout
        assert " passed" in found.stdout and "skipped" not in found.stdout


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Everything torch allocates holds NaN until a kernel writes it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def scheduled(monkeypatch):
    """Makes every layer run on one schedule."""

    def set_schedule(name):
        module = _kernels.module(name)
        monkeypatch.setattr(_kernels.module("recurrence"), "schedule", lambda *_: module)

    return set_schedule


def check(layer, dtype, device):
    """Every result, as close to float64's as torch's own steps come at this dtype."""
    rounded = layer.to(dtype, device)
    assert_all_as_close_as_torch(
        everything(TritonRecurrence.apply, rounded),
        everything(ops.reference, rounded),
        everything(ops.reference, layer),
        FLOORS[dtype],
    )


# batch_sizes, I, H, then bias, weight_ih, direction, and resets with zoneout ("training",
# "evaluation" or none), and the dtypes. More sequences than a program's 16, units beyond a block.
LAYERS = {
    "plain": ([18] * 2, 5, 70, True, False, False, None, (torch.float32,)),
    "ragged": ([18, 17, 3], 9, 20, True, False, True, "training", (torch.float32,)),
    "ended": ([5, 2, 0], 4, 33, False, True, False, "evaluation", (torch.float16, torch.float64)),
    "reverse": ([3, 3], 4, 16, False, False, True, None, (torch.bfloat16, torch.float64)),
}


@on_devices
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cell", COMPILED_CELLS)
def test_grid(cell, schedule, name, device, scheduled):
    scheduled(schedule)
    *sizes, bias, projected, reverse, extras, dtypes = LAYERS[name]
    layer = random_layer(cell, *sizes, bias=bias, projected=projected, reverse=reverse)
    if extras is not None:
        layer = layer.with_extras(drawn=extras == "training")
    for dtype in dtypes:
        if dtype != torch.float64 or schedule == "by_step":  # the other one has no float64
            check(layer, dtype, device)


@on_devices
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cell", COMPILED_CELLS)
def test_inference_equals_training(cell, schedule, device, scheduled):
    scheduled(schedule)
    layer = random_layer(cell, [3, 3, 1], 4, 20).with_extras(drawn=True).to(torch.float32, device)
    trained = torch.ops.fastrnn.triton_recurrence.default(*layer.arguments, True)
    inferred = torch.ops.fastrnn.triton_recurrence.default(*layer.arguments, False)
    assert torch.equal(trained[0], inferred[0])
    assert torch.equal(trained[1], inferred[1])
    assert inferred[2].numel() == inferred[3].numel() == 0


@on_devices
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradients_that_are_not_wanted(schedule, device, scheduled):
    """Outputs one by one, and the gradients of frozen weights and inputs."""
    scheduled(schedule)
    layer = random_layer("lstm", [3, 2], 4, 5).to(torch.float32, device)
    for used in ((0,), (1,), (2,), (0, 2)):
        for frozen in ((), (0,), (2, 3, 4, 5)):
            tensors = [
                t.detach().requires_grad_(i not in frozen) for i, t in enumerate(layer.present)
            ]
            wanted = [t for t in tensors if t.requires_grad]
            found = []
            for function in (TritonRecurrence.apply, ops.reference):
                outputs = function(*layer.with_present(tuple(tensors)))
                total = sum(outputs[i].square().sum() for i in used)
                found.append(torch.autograd.grad(total, wanted))
            torch.testing.assert_close(*found)


@on_devices
def test_second_order(device, scheduled):
    scheduled("by_sequence")
    layer = random_layer("gru", [2, 1], 3, 4).to(torch.float32, device)
    found = []
    for function in (TritonRecurrence.apply, ops.reference):
        total = function(*layer.arguments)[0].square().sum()
        grads = torch.autograd.grad(total, layer.present, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in grads), layer.present))
    torch.testing.assert_close(*found)


@on_devices
def test_opcheck(device):
    layer = random_layer("lstm", [2, 1], 2, 3).with_extras(drawn=True).to(torch.float32, device)
    args = [t.detach() if isinstance(t, torch.Tensor) else t for t in layer.arguments]
    forward = torch.ops.fastrnn.triton_recurrence.default
    torch.library.opcheck(forward, (*args, True))
    output, _, cells, reserve = forward(*args, True)
    saved = (output.cos(), None, cells.cos(), *args[:13], output, cells, reserve, *args[13:])
    torch.library.opcheck(
        torch.ops.fastrnn.triton_recurrence_backward.default, (*saved, True, True)
    )


@on_devices
def test_vmap(device):
    layer = random_layer("rnn_tanh", [2, 2], 3, 4).to(torch.float32, device)
    x, *rest = (a.detach() if isinstance(a, torch.Tensor) else a for a in layer.arguments)
    samples = torch.stack((x, 2 * x))
    found = torch.vmap(lambda sample: TritonRecurrence.apply(sample, *rest)[0])(samples)
    expected = [ops.reference(sample, *rest)[0] for sample in samples]
    torch.testing.assert_close(found, torch.stack(expected))


@on_devices
def test_compile(device):
    module, x = fastrnn.GRU(3, 4, device=device), torch.randn(4, 2, 3, device=device)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = []
    with fastrnn.use_backend("triton"):
        for run in (compiled, module):
            output = run(x)[0]
            found.append([output, *torch.autograd.grad(output.sum(), list(module.parameters()))])
    torch.testing.assert_close(*found)


@on_devices
def test_modules_and_explain(device):
    """The backend by name, through a module: packed layers of both directions, and autocast."""
    module = fastrnn.LSTM(5, 20, 2, bidirectional=True, zoneout=(0.1, 0.2), device=device)
    wide = fastrnn.GRU(5, 520, reset_after=False, device=device)
    x = torch.randn(4, 3, 5, device=device)
    found = []
    for name in ("triton", "reference"):
        with fastrnn.use_backend(name):
            torch.manual_seed(0)
            output, (h_n, c_n) = module(x, lengths=[4, 1, 3])
            total = output.square().sum() + h_n.sum() + c_n.sum()
            found.append([output, *torch.autograd.grad(total, list(module.parameters()))])
    torch.testing.assert_close(*found)
    with fastrnn.use_backend("triton"):
        text = fastrnn.explain(module, x)
        assert text.startswith("triton: runs lstm (whole sequence in one Triton kernel")
        text = fastrnn.explain(wide, x)
        assert text.startswith("triton: runs gru_reset_before (step by step, a product")
        with pytest.raises(RuntimeError, match="'triton' was asked for: the Triton .* layer_norm"):
            fastrnn.LSTM(5, 20, layer_norm=True, device=device)(x)


@on_devices
def test_extreme_gates_saturate(device):
    values = [0.0, -0.0, 1e-30, -1e-6, 1e-3, 0.3, 0.624, -0.626, -5.0, 12.0, -40.0, 1e4, -1e30]
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor(values, dtype=dtype, device=device).unsqueeze(1)
        zeros = torch.zeros(1, len(values), 1, dtype=dtype, device=device)
        with fastrnn.use_backend("triton"):
            output, _ = fastrnn.recurrence("rnn_tanh", x[None], zeros, None, zeros[0, :1])
        exact = torch.tanh(x.double())
        error = (output[0].double() - exact).abs() / exact.abs().clamp_min(torch.finfo(dtype).tiny)
        assert error.max() <= 4 * torch.finfo(dtype).eps  # relative, near zero too


@on_devices
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_non_finite_input_reaches_the_output_and_no_other_sequence(schedule, device, scheduled):
    scheduled(schedule)
    for cell, value in (("lstm", float("inf")), ("rnn_relu", float("nan"))):
        layer = random_layer(cell, [3] * 3, 5, 20).to(torch.float32, device)
        with torch.no_grad():
            layer.tensors[0][4, 2] = value  # step 1, sequence 1
            ours = TritonRecurrence.apply(*layer.arguments)[0]
            expected = ops.reference(*layer.arguments)[0]
        assert torch.equal(ours.isnan(), expected.isnan())
        torch.testing.assert_close(ours, expected, equal_nan=True)


@on_devices
@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, lambda t: t[:, :-1], r"weight_ih must be \[12, 2\] .* got \[12, 3\]"),
        (1, lambda t: t[:, :, :-1], r"weight_hh must be \[9, 3\]"),
        (1, lambda t: t.double(), r"state must be \[1, 3, 4\] torch.float32 .* got .*float64"),
        (3, lambda t: t.T, r"weight_hh must be \[12, 4\] .* got \[4, 12\]"),
        (5, lambda t: t[:-1], r"bias_hh must be \[12\] .* got \[11\]"),
        (6, lambda _: torch.ones(1), "weight_hr must be None for the Triton kernels"),
        (7, lambda _: torch.ones(1), "gains must be None for the Triton kernels"),
        (8, lambda t: t + 1, r"batch_sizes must be non-increasing from B = 3 .* got \[4, 4, 2\]"),
        (9, lambda t: t[1:], r"resets must be \[7\] torch.bool .* got \[6\]"),
        (11, lambda t: t.int(), r"sequences must be \[3\] torch.int64 .* got .*int32"),
        (12, lambda _: [1.5], r"zoneout must be S = 1 numbers in \[0, 1\] or none, got \[1.5\]"),
        (13, lambda _: "lstmm", r"cell must be one of .*, got 'lstmm'"),
    ],
)
def test_raw_operator_names_argument_expected_and_got(place, change, message, device):
    layer = random_layer("gru", [3, 3, 1], 3, 4).with_extras(drawn=True).to(torch.float32, device)
    args = [t.detach() if isinstance(t, torch.Tensor) else t for t in layer.arguments]
    args[place] = change(args[place])
    with pytest.raises(ValueError, match=f"recurrence: {message}") as raised:
        torch.ops.fastrnn.triton_recurrence.default(*args, True)
    assert "\n" not in str(raised.value)


@on_devices
def test_empty_batch(device):
    layer = random_layer("lstm", [1], 3, 4).to(torch.float32, device)
    x, state, *weights = (t.detach().requires_grad_() for t in layer.present)
    args = x[:0], state[:, :0], *weights, None, None, torch.tensor([0, 0]), None, None, None, []
    output, state_n, *_ = TritonRecurrence.apply(*args, "lstm", False)
    assert output.shape == (0, 4) and state_n.shape == (2, 0, 4)
    (grad,) = torch.autograd.grad(output.sum(), weights[:1])
    assert torch.equal(grad, torch.zeros_like(grad))
