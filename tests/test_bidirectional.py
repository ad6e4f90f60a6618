"""Both directions of a layer as one operator, here by the operator of one direction, twice."""

from __future__ import annotations

import pytest
import torch

import fastrnn
from fastrnn import _layers, ops
from fastrnn.bidirectional import BothDirections
from tests.layers import random_layer, random_rows, trained

both = torch.ops.fastrnn.recurrence_both.default
WAYS = [False, True]


def layer_of(cell, sizes=(4, 4, 2), extras=False):
    """Two directions that share rows and what is drawn once; the operator's arguments."""
    ways = [random_layer(cell, list(sizes), 3, 5, reverse=r, seed=int(r)) for r in WAYS]
    ways[1].tensors[0] = ways[0].tensors[0]
    if extras:
        ways = [way.with_extras(drawn=True) for way in ways]
    (resets, seed, sequences, zoneout), other = ways[0].extras, ways[1].extras
    seeds = (seed, None if seed is None else seed + 1)
    ways[1].extras = (other[0], seeds[1], sequences, zoneout)
    rows = (ways[0].batch_sizes, resets, other[0], *seeds, sequences, zoneout, cell)
    return ways, (*ways[0].tensors[:6], *ways[1].tensors[1:6], *rows)


def by_singles(ways, run):
    return [t for way in ways for t in run(*way.arguments)]


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_results_and_gradients_are_those_of_each_direction(cell, extras):
    ways, args = layer_of(cell, extras=extras)
    found, expected = BothDirections.apply(*args), by_singles(ways, ops.Recurrence.apply)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    leaves = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
    for kept in ((0, 1, 2, 4, 5, 6), (1,), (4,)):  # the others' gradients are absent
        kept = [i for i in kept if found[i].numel()]
        sums = [sum(results[i].sin().sum() for i in kept) for results in (found, expected)]
        grads = [
            torch.autograd.grad(s, leaves, retain_graph=True, materialize_grads=True) for s in sums
        ]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("cell", "sizes", "hidden", "dtype"),
    [
        ("lstm", [9] * 17 + [4, 4, 1], 49, torch.float32),
        ("gru", [5, 5, 3, 2], 165, torch.float64),
        ("gru_reset_before", [5, 5, 3, 2], 165, torch.float32),
        ("rnn_tanh", [3, 2], 465, torch.bfloat16),
        ("lstm", [2, 1], 770, torch.float32),  # its weights are larger than caches
        ("lstm", [0, 0], 3, torch.float32),
    ],
)
def test_threads_of_their_own_give_the_same_bits(cell, sizes, hidden, dtype, threads):
    ways = [
        random_layer(cell, sizes, 5, hidden, reverse=r, seed=int(r))
        .to(dtype)
        .with_extras(drawn=True)
        for r in WAYS
    ]
    ways[1].tensors[0] = ways[0].tensors[0]
    rows = [way.extras for way in ways]
    args = (
        *(t for way in ways for t in way.tensors[way is ways[1] : 6]),
        *(ways[0].batch_sizes, rows[0][0], rows[1][0], rows[0][1], rows[1][1], rows[0][2]),
        *(rows[0][3], cell),
    )
    used = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found, expected = BothDirections.apply(*args), by_singles(ways, ops.Recurrence.apply)
        leaves = [t for way in ways for t in way.present]
        grads = [
            torch.autograd.grad([t for t in results if t.requires_grad], leaves, grads_of(results))
            for results in (found, expected)
        ]
    finally:
        torch.set_num_threads(used)
    for a, b in zip((*found, *grads[0]), (*expected, *grads[1]), strict=True):
        assert torch.equal(a, b)


def grads_of(results):
    """Some gradients of those that have any."""
    generator = torch.Generator().manual_seed(2)
    wanted = [t for t in results if t.requires_grad]
    return [torch.randn(t.shape, generator=generator).to(t.dtype) for t in wanted]


def test_second_derivatives():
    _, args = layer_of("gru", sizes=(2, 1))
    leaves = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]

    def outputs(*tensors):
        rest = iter(tensors)
        is_leaf = [isinstance(a, torch.Tensor) and a.requires_grad for a in args]
        filled = [next(rest) if leaf else a for leaf, a in zip(is_leaf, args, strict=True)]
        found = BothDirections.apply(*filled)
        return found[0], found[1], found[4], found[5]

    assert torch.autograd.gradgradcheck(outputs, leaves, fast_mode=True)


@pytest.mark.parametrize("save", [True, False])
def test_opcheck(save):
    _, args = layer_of("lstm")
    torch.library.opcheck(both, (*args, save))
    detached = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
    out, state_n, cells, reserve, *others = both(*detached, True)
    saved = (out, cells, reserve, others[0], *others[2:])
    grads = (out.cos(), None, cells.cos(), None, state_n.cos(), None)
    torch.library.opcheck(
        torch.ops.fastrnn.recurrence_both_backward.default,
        (*grads, *detached[:-1], *saved, "lstm", True, save),
    )


def test_vmap():
    _, args = layer_of("gru", sizes=(3, 3))
    args = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
    x = torch.randn(4, *args[0].shape, dtype=torch.float64)

    def loss(rows):
        out, _, _, _, back, *_ = BothDirections.apply(rows, *args[1:])
        return (out * back).sum()

    found = torch.vmap(torch.func.grad(loss))(x)
    expected = torch.stack([torch.func.grad(loss)(rows) for rows in x])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_layers_take_it(monkeypatch, kind, padded):
    torch.manual_seed(0)
    options = {"zoneout": 0.2} if kind == "GRU" else {}
    module = getattr(fastrnn, kind)(3, 5, 2, bidirectional=True, dtype=torch.float64, **options)
    x, resets = random_rows(padded)
    calls = []

    def results(taken):
        monkeypatch.setattr(_layers, "side_by_side", lambda *_: calls.append(taken) or taken)
        torch.manual_seed(1)
        wants = {"return_cells": True} if kind == "LSTM" else {}
        return trained(module, x, resets, **wants)

    for a, b in zip(results(True), results(False), strict=True):
        torch.testing.assert_close(a, b)
    assert calls == [True] * 2 + [False] * 2
    with torch.no_grad():
        monkeypatch.setattr(_layers, "side_by_side", lambda *_: True)
        module.eval()
        a = module(x)[0]
        monkeypatch.setattr(_layers, "side_by_side", lambda *_: False)
        b = module(x)[0]
    assert torch.equal(a if padded else a.data, b if padded else b.data)


def test_compiles():
    torch._dynamo.reset()
    _, args = layer_of("lstm")

    def run(rows):
        return sum(t.sin().sum() for t in BothDirections.apply(rows, *args[1:])[:7])

    x = args[0].detach().requires_grad_()
    y = x.detach().clone().requires_grad_()
    torch.compile(run, backend="aot_eager", fullgraph=True)(x).backward()
    run(y).backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_plain_layers_are_side_by_side(device):
    class Rows:
        def __init__(self, device):
            self.device = torch.device(device)

        def numel(self):
            return 6

    plain = {"weight_ih": None, "weight_hh": None, "bias_ih": None, "bias_hh": None}
    for extra in ("weight_hr", "layer_norm"):
        assert not _side_by_side(Rows(device), [plain | {extra: None}] * 2)
    assert _side_by_side(Rows(device), [plain] * 2)
    assert not _side_by_side(Rows("meta"), [plain] * 2)


def _side_by_side(tensor, ways):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastrnn.bidirectional, "lower_dtype", lambda _: None)
        patch.setattr(fastrnn.bidirectional, "chosen", lambda _: "native")
        return fastrnn.bidirectional.side_by_side("lstm", tensor, ways)
