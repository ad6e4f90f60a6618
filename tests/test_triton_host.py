"""What the Triton kernels' callers do on the host: no kernel runs."""

from __future__ import annotations

import importlib.util
from time import sleep
from unittest.mock import Mock

import pytest
import torch

from fastrnn import _kernels
from tests.gpu_checks import tf32

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs the triton package", allow_module_level=True)

pytestmark = pytest.mark.triton


def test_products_are_as_torch_is_set_but_exact_on_amd_devices(monkeypatch):
    precision = _kernels.module("layer").precision
    assert precision() == "ieee"
    with tf32():
        assert precision() == "tf32"
        monkeypatch.setattr(torch.version, "hip", "6.4")
        assert precision() == "ieee"


@pytest.mark.parametrize("sizes", [[4, 4, 2, 2, 1], [3, 1], [2, 2]], ids=str)
def test_first_rows_of_steps_are_the_same_in_a_graphs_capture(monkeypatch, sizes):
    module = _kernels.module("walk")
    steps = module.Walk(sizes, None, None, None, (), False)
    expected = steps.starts(torch.device("cpu"))
    monkeypatch.setattr(module, "_is_capturing", lambda device: True)
    monkeypatch.setattr(torch, "tensor", None)  # a copy from the host cannot be captured
    found = steps.starts(torch.device("cpu"))
    assert (expected is None) is (found is None) is (sizes == [2, 2])
    assert found is None or torch.equal(found, expected)


@pytest.mark.parametrize("sizes", [[3], [3] * 4, [5, 5, 2, 2, 2, 1], [4, 3, 3, 0, 0], [0]], ids=str)
def test_states_that_steps_found_are_few_pieces(monkeypatch, sizes):
    """Each row's is its sequence's row in the step taken before, or the first state."""
    rows = [(t, b) for t, size in enumerate(sizes) for b in range(size)]
    output = torch.arange(len(rows)).float()[:, None]
    state = -1 - torch.arange(sizes[0]).float()[:, None]
    cat, pieces = torch.cat, []
    monkeypatch.setattr(torch, "cat", lambda found: pieces.extend(found) or cat(found))
    for reverse in (False, True):
        pieces.clear()
        walk = _kernels.module("walk").Walk(sizes, None, None, None, (), reverse)
        before = [(t + 1 if reverse else t - 1, b) for t, b in rows]
        expected = [rows.index(at) if at in rows else -1 - at[1] for at in before]
        assert walk.previous(output, state).flatten().tolist() == expected
        assert len(pieces) == 2 * len(set(sizes))


def test_first_rows_of_steps_are_copied_while_the_host_goes_on(monkeypatch):
    tensor = Mock()
    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(_kernels.module("walk"), "_is_capturing", lambda device: False)
    cuda = torch.device("cuda")
    _kernels.module("walk").Walk([2, 1], None, None, None, (), False).starts(cuda)
    tensor.assert_called_once_with([0, 2, 3], pin_memory=True)
    tensor.return_value.to.assert_called_once_with(cuda, non_blocking=True)


def test_a_candidate_is_timed_by_the_device_not_by_its_launches(monkeypatch):
    """Which begin only when the device pauses, for longer than the host launches."""
    calls = Mock()
    calls.Event().elapsed_time.return_value = 3.0
    calls.run.side_effect = lambda: sleep(0.001)
    monkeypatch.setattr(torch.cuda, "Event", calls.Event)
    monkeypatch.setattr(torch.cuda, "_sleep", calls.pause)
    assert _kernels.module("tuning")._time(calls.run) == 3.0
    names = [name for name, *_ in calls.mock_calls if name != "Event"]
    timed = "pause", "Event().record", "run", "Event().record"
    assert names[:2] == ["run", "run"] and tuple(names[2:6]) == timed
    assert all(2e6 <= call.args[0] <= 4e8 for call in calls.pause.mock_calls)
