"""`torch.func.functionalize`, which refuses autograd Functions, has operators by themselves."""

from __future__ import annotations

import pytest
import torch
from module_pairs import IN, B, H, T, tensor
from torch.func import functionalize, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import fastrnn
from fastrnn import _library
from fastrnn._dropout import dropout

pytestmark = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")
LAYERS = [
    {},
    {"num_layers": 2, "dropout": 0.5},
    {"bidirectional": True},
    {"weight_dropout": 0.5},
    {"zoneout": 0.2},
    {"layer_norm": True},
    {"proj_size": 2},
    {"recompute": True},
]


def assert_same(function, args, weights=()):
    """Equal results and gradients with and without functionalisation."""
    found = []
    for run in (function, functionalize(function)):
        torch.manual_seed(0)
        result = run(*args)
        found.append([result, *torch.autograd.grad(result.square().sum(), [*args, *weights])])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_layers(options):
    module = fastrnn.LSTM(IN, H, dtype=torch.float64, **options)
    assert_same(lambda x: module(x)[0], [tensor(T, B, IN)], list(module.parameters()))


def test_functions():
    q, mask = tensor(2, 2, 5, 3), tensor(5, 5)
    assert_same(lambda q, m: fastrnn.masked_attention(q, q, q, m, dropout_p=0.3), [q, mask])
    target = torch.randint(7, (5,))
    run = fastrnn.linear_cross_entropy
    assert_same(lambda h, w: run(h, w, None, target), [tensor(5, 3), tensor(7, 3)])
    assert_same(lambda x: dropout(x, 0.3), [tensor(5, 3)])


def test_graphs_hold_the_operators():
    module = fastrnn.GRU(IN, H, dtype=torch.float64)
    graph = make_fx(functionalize(lambda x: module(x)[0]))(tensor(T, B, IN)).graph
    assert torch.ops.fastrnn.recurrence.default in [node.target for node in graph.nodes]


def test_inside_and_around_vmap():
    module, x = fastrnn.GRU(IN, H, dtype=torch.float64), tensor(2, T, B, IN)
    expected = vmap(lambda x: module(x)[0])(x)
    for run in (
        vmap(functionalize(lambda x: module(x)[0])),
        functionalize(vmap(lambda x: module(x)[0])),
    ):
        torch.testing.assert_close(run(x), expected, rtol=0, atol=1e-12)


def test_with_transforms_that_make_gradients():
    module, x = fastrnn.GRU(IN, H, dtype=torch.float64), tensor(T, B, IN)

    def loss(x):
        return module(x)[0].sum()

    for run in (functionalize(grad(loss)), grad(functionalize(loss))):
        with pytest.raises(RuntimeError, match="must be without torch.func's gradients") as raised:
            run(x)
        assert "\n" not in str(raised.value)
        with fastrnn.use_backend("reference"):
            torch.testing.assert_close(run(x), grad(loss)(x), rtol=0, atol=1e-12)
