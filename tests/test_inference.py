"""Plain layers and cells without gradients: the same bits as with them, and errors as clear."""

from __future__ import annotations

import copy

import pytest
import torch

import fastrnn
from fastrnn import _layers, _library, single_step

pytestmark = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")

LAYERS = torch.ops.fastrnn.recurrence_layers.default
STEP = torch.ops.fastrnn.recurrence_step.default
KINDS = ["RNN", "GRU", "LSTM"]
T, B, IN, H = 4, 3, 5, 7


def called(monkeypatch, name):
    """The calls of a function of `inference` from now on."""
    calls = []
    for place in (_layers, single_step):
        if hasattr(place, name):
            run = getattr(place, name)
            monkeypatch.setattr(place, name, lambda *a, run=run: calls.append(a) or run(*a))
    return calls


def hx(kind, *shape):
    states = tuple(torch.randn(*shape) for _ in range(2))
    return states if kind.startswith("LSTM") else states[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_have_the_same_bits(monkeypatch, kind, layers, dtype):
    torch.manual_seed(0)
    module = getattr(fastrnn, kind)(IN, H, layers, bias=layers > 1).to(dtype)
    calls = called(monkeypatch, "run_layers")
    given = hx(kind, layers, B, H)
    given = tuple(s.to(dtype) for s in given) if kind == "LSTM" else given.to(dtype)
    for args in ((), (given,)):
        x = torch.randn(T, B, IN, dtype=dtype)
        with torch.no_grad():
            found = module(x, *args)
        torch.testing.assert_close(found, module(x, *args), rtol=0, atol=0)
    assert len(calls) == 2


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_cells_have_the_same_bits(monkeypatch, kind, bias):
    torch.manual_seed(0)
    module = getattr(fastrnn, kind + "Cell")(IN, H, bias)
    calls = called(monkeypatch, "run_step")
    x, states = torch.randn(B, IN), hx(kind, B, H)
    kept = copy.deepcopy(states)
    for args in ((), (states,)):
        with torch.no_grad():
            found = module(x, *args)
        torch.testing.assert_close(found, module(x, *args), rtol=0, atol=0)
    assert len(calls) == 2
    for state in found if kind == "LSTM" else (found,):
        state.add_(1)  # its own, not a view
    torch.testing.assert_close(states, kept, rtol=0, atol=0)


def test_calls_that_want_gradients_go_elsewhere(monkeypatch):
    calls, steps = called(monkeypatch, "run_layers"), called(monkeypatch, "run_step")
    layer, cell, x = fastrnn.GRU(IN, H), fastrnn.GRUCell(IN, H), torch.randn(T, B, IN)
    layer(x)[0].sum().backward()
    cell(x[0]).sum().backward()
    for module in (layer, cell):
        module.requires_grad_(False)
    state = torch.zeros(B, H, requires_grad=True)
    cell(x[0], state).sum().backward()
    layer(x, state.detach()[None].requires_grad_())[0].sum().backward()
    assert calls == steps == [] and state.grad is not None


def test_other_devices_keep_to_the_operator_that_they_have(monkeypatch):
    calls = called(monkeypatch, "run_layers")
    monkeypatch.setattr(_layers, "at_once", lambda *_: True)
    with torch.no_grad():
        output, _ = fastrnn.GRU(IN, H, 2, device="meta")(torch.zeros(T, B, IN, device="meta"))
    assert calls == [] and output.shape == (T, B, H)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_does_not_fit_is_named(kind):
    layer, cell = getattr(fastrnn, kind)(IN, H, 2), getattr(fastrnn, kind + "Cell")(IN, H)
    layer.weight_hh_l1 = torch.nn.Parameter(torch.zeros(3, H))
    cell.weight_hh = torch.nn.Parameter(torch.zeros(3, H))
    with torch.no_grad():
        for module, x in ((layer, torch.randn(T, B, IN)), (cell, torch.randn(B, IN))):
            with pytest.raises(ValueError, match=r"weight_hh must be \[G\*H, H\] = "):
                module(x)


@pytest.mark.parametrize("states", [0, 2])
def test_opcheck(states):
    module, x = fastrnn.LSTM(IN, H, 2), torch.randn(T * B, IN)
    weights = [w.detach() for each in module.all_weights for w in each]
    given = [torch.randn(2, B, H) for _ in range(states)]
    torch.library.opcheck(LAYERS, (x, given, weights, T, H, "lstm", True, False))
    given = [torch.randn(T * B, H) for _ in range(states)]
    torch.library.opcheck(STEP, (x, given, weights[:4], "lstm"))


def test_operators_refuse_what_does_not_fit():
    weights = [w.detach() for w in fastrnn.LSTM(IN, H).all_weights[0]]
    x, state = torch.randn(T * B, IN), torch.randn(1, B, H)
    wrong = [
        ((x, [], [], T, H, "lstm", True, False), "weights must be 4 tensors"),
        ((x, [], weights[:3], T, H, "lstm", True, False), "weights must be 4 tensors"),
        ((x, [], weights, 5, H, "lstm", True, False), r"input must be \[T \* B, I\]"),
        ((x, [], weights, 0, H, "lstm", True, False), r"input must be \[T \* B, I\]"),
        ((x, [], weights, T, H + 1, "lstm", True, False), "weight_ih must be"),
        ((x, [state], weights, T, H, "lstm", True, False), "states must be 2 or none, got 1"),
        ((x, [state, state[0]], weights, T, H, "lstm", True, False), "state must be"),
        (
            (x, [state.double()] * 2, weights, T, H, "lstm", True, False),
            "state must have the input's",
        ),
        ((x, [], weights, T, H, "lstm", True, True), "weights must be 3 tensors"),
        ((x, [], weights[:3], T, H, "lstm", True, True), "bias_ih must be"),
        ((x, [], weights, T, 0, "lstm", True, False), "hidden size must be at least 1, got 0"),
        ((x, [], weights, T, H, "lstn", True, False), "no compiled cell"),
    ]
    for args, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            LAYERS(*args)
    for args, message in (
        ((x, [], weights[:3], "lstm"), "two weights or four, got"),
        ((x[0], [], weights, "lstm"), "two weights or four, got"),
        ((x, [state[0]] * 2, weights, "lstm"), "state must be"),
    ):
        with pytest.raises(RuntimeError, match=message):
            STEP(*args)
