"""Tensors whose memory was freed or cut, as sharding and offloading do, are refused by name."""

import pytest
import torch

import fastrnn
from fastrnn import _library

pytestmark = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")
KINDS = ["RNN", "GRU", "LSTM"]
REFUSED = "{} must have a storage of [0-9]+ bytes or more, got {}"


def cut(tensor, size=0):
    tensor.detach().untyped_storage().resize_(size)
    return tensor


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights(kind, name):
    layer, cell = getattr(fastrnn, kind)(4, 5), getattr(fastrnn, kind + "Cell")(4, 5)
    x = torch.randn(3, 2, 4, requires_grad=True)
    output = layer(x)[0].sum()
    cut(getattr(layer, name + "_l0"))
    cut(getattr(cell, name), 8)
    refused = REFUSED.format(name, "{}")
    for run in (lambda: layer(x), output.backward):
        with pytest.raises(RuntimeError, match=refused.format(0)):
            run()
    with pytest.raises(RuntimeError, match=refused.format(8)):
        cell(x[0])
    if name.startswith("weight"):
        for run in (layer.freeze, lambda: layer.stream(2)):
            with pytest.raises(RuntimeError, match=refused.format(0)):
                run()


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_and_states(kind):
    layer, x, state = getattr(fastrnn, kind)(4, 5), torch.randn(3, 2, 4), torch.zeros(1, 2, 5)
    given = (state, torch.zeros(1, 2, 5)) if kind == "LSTM" else state
    output = layer(x, given)[0].sum()
    cut(x)
    for run in (lambda: layer(x), output.backward):
        with pytest.raises(RuntimeError, match=REFUSED.format("input", 0)):
            run()
    cut(state)
    with pytest.raises(RuntimeError, match=REFUSED.format("state", 0)):
        layer(torch.randn(3, 2, 4), given)


def test_a_part_of_a_storage_is_enough():
    """What lies behind a view's last element may be gone."""
    layer, whole = fastrnn.GRU(4, 5), torch.randn(4, 2, 4)
    view, more = whole[1:3], whole[1:4]
    expected = layer(view)[0]
    cut(whole, whole[:3].numel() * 4)
    assert torch.equal(layer(view)[0], expected)
    with pytest.raises(RuntimeError, match=REFUSED.format("input", 96)):
        layer(more)


@pytest.mark.parametrize("name", ["query", "key", "value", "mask"])
def test_attention(name):
    given = {each: torch.randn(1, 2, 4, 8) for each in ("query", "key", "value")}
    given["mask"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    cut(given[name])
    with pytest.raises(RuntimeError, match=REFUSED.format(name, 0)):
        fastrnn.masked_attention(*given.values())


@pytest.mark.parametrize("name", ["hidden", "weight", "bias", "target"])
def test_loss(name):
    given = {"hidden": torch.randn(3, 4), "weight": torch.randn(7, 4), "bias": torch.randn(7)}
    given["target"] = torch.tensor([0, 1, 2])
    cut(given[name])
    with pytest.raises(RuntimeError, match=REFUSED.format(name, 0)):
        fastrnn.linear_cross_entropy(*given.values())
