"""A projected h and layer normalisation in the CUDA operators, over emulated kernels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests import emulated
from tests.test_recurrence_device import FLOORS, check, poisoned_memory
from tests.test_rows import KINDS, detached, layer_of

__all__ = ["poisoned_memory"]  # a fixture

# batch_sizes, I, H
SHAPES = {
    "step": ([5], 12, 33),
    "padded": ([3, 3, 3], 8, 48),
    "ragged": ([5, 5, 3, 3, 1], 7, 24),
    "ended": ([3, 2, 0], 5, 9),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOORS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_grid(kind, dtype, shape):
    check(layer_of(kind, *SHAPES[shape], seed=1), dtype)
    check(layer_of(kind, *SHAPES[shape], bias=False, reverse=True, seed=2), dtype)
    check(layer_of(kind, *SHAPES[shape], projected=True, reverse=True, seed=3), dtype)


@pytest.mark.parametrize("extras", ["resets", "training", "evaluation"])
@pytest.mark.parametrize("dtype", FLOORS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_extras(kind, dtype, extras):
    for reverse in (False, True):
        layer = layer_of(kind, [4, 4, 3, 1], 6, 24, reverse=reverse)
        layer = layer.with_extras(drawn=extras == "training")
        if extras == "resets":
            layer = replace(layer, extras=(layer.extras[0], None, None, []))
        check(layer, dtype)


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_inference_equals_training(kind, extras):
    run = emulated.operators().recurrence.default
    for dtype in (torch.float32, torch.bfloat16):
        layer = layer_of(kind, [6, 6, 3], 10, 24).to(dtype)
        args = detached(layer.with_extras(drawn=True) if extras else layer)
        trained, inferred = run(*args, True), run(*args, False)
        assert torch.equal(trained[0], inferred[0])
        assert torch.equal(trained[1], inferred[1])
        assert inferred[2].numel() == inferred[3].numel() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind):
    operators = emulated.operators()
    args = detached(layer_of(kind, [3, 2], 4, 8).to(torch.float32))
    # The namespace has no autograd of its own.
    tests = ("test_schema", "test_faketensor")
    for save in (True, False):
        torch.library.opcheck(operators.recurrence.default, (*args, save), test_utils=tests)
    output, _, cells, reserve = operators.recurrence.default(*args, True)
    saved = (output.cos(), None, None, *args[:13], output, cells, reserve, *args[13:])
    backward = operators.recurrence_backward.default
    every = backward(*saved, True, True)
    for input_grad, weight_grad in ((True, True), (False, True), (True, False)):
        torch.library.opcheck(backward, (*saved, input_grad, weight_grad), test_utils=tests)
        wanted = (input_grad, True, *[weight_grad] * 6)
        some = backward(*saved, input_grad, weight_grad)
        for a, b, w in zip(some, every, wanted, strict=True):
            assert torch.equal(a, b if w else b.new_empty(0))


@pytest.mark.parametrize("kind", KINDS)
def test_state_beyond_a_projected_h_does_not_count(kind):
    run = emulated.operators().recurrence.default
    args = detached(layer_of(kind, [3, 2], 4, 8))
    expected = run(*args, True)
    args[1] = args[1].clone()
    args[1][0, :, 4:] = float("nan")
    found = run(*args, True)
    if kind == "projected":
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert not found[1][0, :, 4:].any()
    else:
        assert found[0].isnan().any()


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_schedule_takes_them(kind):
    operators = emulated.operators()
    args = detached(layer_of(kind, [3, 2], 4, 8).to(torch.bfloat16))
    reason = "projection of h" if kind == "projected" else "layer normalisation"
    for schedule in ("cluster", "grid"):
        operators.use_cuda_schedule.default(schedule)
        message = f"the {schedule} schedule was asked for: it has no {reason}"
        try:
            with pytest.raises(RuntimeError, match=message):
                operators.recurrence.default(*args, True)
        finally:
            operators.use_cuda_schedule.default("auto")


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batch(kind):
    args = detached(layer_of(kind, [1], 3, 4))
    args[0], args[1], args[8] = args[0][:0], args[1][:, :0], torch.tensor([0, 0])
    operators = emulated.operators()
    output, _, cells, reserve = operators.recurrence.default(*args, True)
    assert output.shape == (0, 2 if kind == "projected" else 4)
    saved = (output, None, None, *args[:13], output, cells, reserve, *args[13:])
    _, _, *grads = operators.recurrence_backward.default(*saved, True, True)
    for grad, tensor in zip(grads, args[2:8], strict=True):
        assert grad.shape == ((0,) if tensor is None else tensor.shape) and not grad.any()
