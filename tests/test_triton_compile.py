"""Every Triton kernel, in every configuration, compiled for GPUs that need not be there."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from fastrnn import _kernels
from fastrnn.cells import COMPILED
from tests.layers import random_layer

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs the triton package", allow_module_level=True)

from tests.triton_device import SHARED, Device

pytestmark = pytest.mark.triton
recurrence = _kernels.module("recurrence")
CAPABILITIES = sorted(SHARED)
# Bytes. The assembler parks a few words where that lets one more program on a multiprocessor;
# registers that do not suffice cost hundreds and thousands.
PARKED = 64


def compile_layer(layer, capability, schedule, config, inference=True):
    """What the passes of a layer compile, with one of the candidates; None if there are fewer."""
    module = _kernels.module(schedule)
    args = [t.detach() if isinstance(t, torch.Tensor) else t for t in layer.arguments]
    with pytest.MonkeyPatch.context() as patch, Device(capability) as device:
        patch.setattr(recurrence, "schedule", lambda *_: module)
        candidates = module.candidates
        counts = set()

        def one(layer):
            every = candidates(layer)
            counts.add(len(every))
            return every[config:][:1] or every[:1]

        patch.setattr(module, "candidates", one)
        if inference:
            recurrence.recurrence(*args, False)
        output, state_n, cells, reserve = recurrence.recurrence(*args, True)
        given = output, state_n, cells if cells.numel() else None
        saved = *args[:13], output, cells, reserve, *args[13:]
        recurrence.recurrence_backward(*given, *saved, True, True)
    return None if config >= max(counts) else device


def widest(cell, dtype, capability):
    """The most units whose weights stay on chip."""
    with Device(capability):
        return max(h for h in (16, 32, 64, 128, 256, 512) if recurrence.on_chip(cell, dtype, h))


def check(cell, dtype, capability, schedule, hidden, config, extras, inference=True):
    sizes = [18, 17] if extras else [18, 18]
    layer = random_layer(cell, sizes, 8, hidden).to(dtype)
    if extras:
        layer = layer.with_extras(drawn=True)
    device = compile_layer(layer, capability, schedule, config, inference)
    if device is None:
        assert config > 0
        return
    names = {kernel.name for kernel in device.compiled}
    assert {f"forward_{schedule[3:]}", f"backward_{schedule[3:]}"} <= names
    for kernel in device.compiled:
        assert kernel.shared <= SHARED[capability], kernel
        assert kernel.stack <= PARKED, (kernel, hidden, config, extras)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_each_architecture(capability):
    dtype = torch.bfloat16 if capability < 100 else torch.float32
    hidden = widest("gru", dtype, capability)
    check("gru", dtype, capability, "by_sequence", hidden, 0, True, inference=False)
    check("gru_reset_before", torch.float16, capability, "by_step", 1500, 0, True, inference=False)


@pytest.mark.slow
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("cell", sorted(COMPILED))
def test_each_kernel_and_configuration(cell, capability, extras):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        most = widest(cell, dtype, capability)
        for hidden in (h for h in (16, 32, 64, 128, 256) if h <= most):
            for config in range(2):
                check(cell, dtype, capability, "by_sequence", hidden, config, extras)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        for config in range(3):
            check(cell, dtype, capability, "by_step", 1500, config, extras)


@pytest.mark.slow
@pytest.mark.parametrize("cell", sorted(COMPILED))
def test_tensor_float_32(cell, monkeypatch):
    monkeypatch.setattr(_kernels.module("by_sequence"), "precision", lambda: "tf32")
    hidden = widest(cell, torch.float32, 90)
    for config in range(2):
        check(cell, torch.float32, 90, "by_sequence", hidden, config, True)


def test_lengths_and_batches_compile_once():
    """Neither the numbers of steps, rows and sequences nor a probability makes a new kernel."""
    for schedule in ("by_sequence", "by_step"):
        counts = []
        for sizes in ([1], [16, 16], [32] * 5, [48, 32]):
            layer = random_layer("rnn_tanh", sizes, 8, 16).to(torch.float32)
            counts.append(compile_layer(layer, 90, schedule, 0))
        once, *again = ({k.name for k in device.compiled} for device in counts)
        ragged = {"forward_sequence", "backward_sequence"} if schedule == "by_sequence" else set()
        assert not again[0] and not again[1] and again[2] <= ragged
        assert len(counts[0].compiled) == len(once) + 1  # inference is a kernel of its own
