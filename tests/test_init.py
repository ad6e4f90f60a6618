"""Initialisations of recurrent weights."""

import math

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn import init

IN, H = 4, 6
MODULES = [
    lambda: fastrnn.LSTM(IN, H, 2, bidirectional=True),
    lambda: fastrnn.GRUCell(IN, H),
    lambda: nn.Sequential(nn.Linear(3, 3), fastrnn.RNN(IN, H)),
    lambda: nn.ModuleList([nn.GRU(IN, H), nn.LSTMCell(IN, H)]),
]


def named(module, word):
    return {name: p for name, p in module.named_parameters() if word in name}


@pytest.mark.parametrize("build", MODULES)
def test_orthogonal(build):
    module = build()
    before = {name: p.clone() for name, p in module.named_parameters()}
    assert init.orthogonal_(module) is module
    weights = named(module, "weight_hh")
    assert weights
    for weight in weights.values():
        for gate in weight.detach().split(H):
            torch.testing.assert_close(gate @ gate.T, torch.eye(H), rtol=0, atol=1e-5)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) is (name not in weights)


def test_orthogonal_with_projection():
    module = init.orthogonal_(fastrnn.LSTM(IN, H, proj_size=3))
    for gate in module.weight_hh_l0.detach().split(H):
        torch.testing.assert_close(gate.T @ gate, torch.eye(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("build", [MODULES[0], MODULES[3]])
def test_forget_bias(build):
    module = build()
    before = {name: p.clone() for name, p in module.named_parameters()}
    assert init.forget_bias_(module, 1.5) is module
    for name, bias in named(module, "bias").items():
        changed = bias.size(0) == 4 * H  # an LSTM's
        keep = torch.ones(bias.size(0), dtype=torch.bool)
        keep[H : 2 * H] = not changed
        assert torch.equal(bias[keep], before[name][keep])
        if changed:
            assert (bias[H : 2 * H] == (1.5 if "bias_ih" in name else 0)).all()


@pytest.mark.parametrize("build", MODULES)
def test_uniform(build):
    module = build()
    for part in module.modules():
        if isinstance(part, nn.Linear):
            linear, before = part, part.weight.clone()
    init.uniform_(module, 10.0)
    drawn = torch.cat([p.flatten() for name, p in named(module, "_hh").items()])
    assert 9 < drawn.abs().max() <= 10 and drawn.abs().mean() > 3
    if isinstance(module, nn.Sequential):
        assert torch.equal(linear.weight, before)


def test_gains_are_left_alone():
    module = init.uniform_(fastrnn.GRU(IN, H, layer_norm=True), 0.1)
    assert (module.ln_hh_weight_l0 == 1).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: init.orthogonal_(nn.Linear(2, 2)), ValueError, "orthogonal_: .* got Linear"),
        (lambda: init.orthogonal_(3), TypeError, "module must be a torch.nn.Module, got int"),
        (
            lambda: init.forget_bias_(fastrnn.GRU(2, 3)),
            ValueError,
            "must hold lstm modules with bi",
        ),
        (lambda: init.forget_bias_(fastrnn.LSTM(2, 3, bias=False)), ValueError, "got LSTM"),
        (lambda: init.forget_bias_(fastrnn.LSTM(2, 3), "a"), TypeError, "value must be a number"),
        (lambda: init.uniform_(fastrnn.GRU(2, 3), "a"), TypeError, "bound must be a number, got"),
        (lambda: init.uniform_(fastrnn.GRU(2, 3), -1.0), ValueError, "bound must be .*, got -1.0"),
        (
            lambda: init.uniform_(fastrnn.GRU(2, 3), math.inf),
            ValueError,
            "bound must be .*, got inf",
        ),
    ],
)
def test_mistakes(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_forget_bias_of_subclasses():
    class Mine(nn.LSTM):
        pass

    mine = init.forget_bias_(nn.ModuleList([Mine(IN, H), fastrnn.LSTM(IN, H)]))[0]
    assert torch.equal(mine.bias_ih_l0[H : 2 * H], torch.ones(H))
    assert torch.equal(mine.bias_hh_l0[H : 2 * H], torch.zeros(H))
