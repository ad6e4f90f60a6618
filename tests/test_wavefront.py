"""Layers one above the other as one operator, here by the operator of one layer, in turn."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import _layers, ops, wavefront
from fastrnn._arguments import padded_sizes
from fastrnn.wavefront import Stack
from tests.layers import random_layer, random_rows, trained

stack = torch.ops.fastrnn.recurrence_stack.default
stack_backward = torch.ops.fastrnn.recurrence_stack_backward.default


def stack_of(cell, sizes=(4, 4, 2), layers=3, bias=True, resets=False, hidden=5):
    """Layers whose first input alone counts; the arguments of `Stack`."""
    every = [
        random_layer(cell, list(sizes), hidden if k else 3, hidden, bias=bias, seed=k)
        for k in range(layers)
    ]
    if resets:
        every[0] = every[0].with_extras(drawn=False)
    tensors = [t for layer in every for t in layer.present[1:]]
    rows = (every[0].batch_sizes, every[0].extras[0], cell, bias)
    return every, (every[0].tensors[0], *rows, *tensors)


def one_by_one(every, args, run=ops.Recurrence.apply):
    found, rows = [], args[0]
    for layer in every:
        arguments = [rows, *layer.tensors[1:], args[1], args[2], None, None, [], layer.cell, False]
        results = run(*arguments)
        found += results
        rows = results[0]
    return found


def of_operator(args, save=True):
    """The operator's arguments from `Stack`'s."""
    input, batch_sizes, resets, cell, bias, *layers = (
        a.detach() if isinstance(a, torch.Tensor) else a for a in args
    )
    return input, layers, batch_sizes, resets, cell, bias, save


@pytest.mark.parametrize(("bias", "resets"), [(True, False), (False, True)])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_results_and_gradients_are_those_of_each_layer(cell, bias, resets):
    every, args = stack_of(cell, bias=bias, resets=resets)
    found, expected = Stack.apply(*args), one_by_one(every, args)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    leaves = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
    assert len(leaves) == 1 + 3 * (5 if bias else 3)
    for kept in ((8, 1, 5, 9, 10), (8,), (1,), (9,), (10,)):  # the others' gradients are absent
        kept = [i for i in kept if found[i].numel()]
        if not kept:
            continue
        sums = [sum(results[i].sin().sum() for i in kept) for results in (found, expected)]
        grads = [
            torch.autograd.grad(s, leaves, retain_graph=True, materialize_grads=True) for s in sums
        ]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)


def test_what_no_gradient_flows_to_says_so():
    _, args = stack_of("lstm")
    wanted = [False, True, False, False] * 2 + [True, True, True, False]
    assert [t.requires_grad for t in Stack.apply(*args)] == wanted


def test_some_gradients_are_not_wanted():
    _, args = stack_of("gru")
    args = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
    args[-4].requires_grad_()  # the last layer's weight_ih
    output = Stack.apply(*args)[-4]
    (grad,) = torch.autograd.grad(output.sin().sum(), args[-4])
    assert grad.abs().sum() > 0


def test_second_derivatives():
    _, args = stack_of("gru", sizes=(2, 1), layers=2, hidden=3)
    leaves = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]

    def outputs(*tensors):
        rest = iter(tensors)
        is_leaf = [isinstance(a, torch.Tensor) and a.requires_grad for a in args]
        found = Stack.apply(
            *(next(rest) if leaf else a for leaf, a in zip(is_leaf, args, strict=True))
        )
        return found[1], found[4], found[5]

    assert torch.autograd.gradgradcheck(outputs, leaves, fast_mode=True)


@pytest.mark.parametrize("save", [True, False])
def test_opcheck(save):
    _, args = stack_of("lstm", layers=2)
    input, batch_sizes, resets, cell, bias, *layers = args
    torch.library.opcheck(stack, (input, layers, batch_sizes, resets, cell, bias, save))
    detached = of_operator(args)
    results = stack(*detached)
    saved = [t for i, t in enumerate(results) if i % 4 != 1]
    grads = (results[4].cos(), None, [results[1].cos(), results[5].cos()])
    torch.library.opcheck(
        stack_backward, (*grads, *detached[:4], saved, *detached[4:6], True, not save, save)
    )


def test_the_operator_by_itself_has_gradients():
    _, args = stack_of("lstm", layers=2)
    input, batch_sizes, resets, cell, bias, *layers = args
    found = stack(input, layers, batch_sizes, resets, cell, bias, False)
    assert found[6].numel() == found[7].numel() == 0
    grads = torch.autograd.grad(found[4].sum(), [input, *layers], allow_unused=True)
    assert all(g is not None for g in grads)


def test_compiles():
    torch._dynamo.reset()
    _, args = stack_of("lstm", layers=2)

    def run(rows):
        found = Stack.apply(rows, *args[1:])
        return sum(found[i].sin().sum() for i in (1, 4, 5, 6))

    x = args[0].detach().requires_grad_()
    y = x.detach().clone().requires_grad_()
    torch.compile(run, backend="aot_eager", fullgraph=True)(x).backward()
    run(y).backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("padded", [True, False])
def test_layers_take_it(monkeypatch, kind, padded):
    torch.manual_seed(0)
    module = getattr(fastrnn, kind)(3, 5, 3, dtype=torch.float64, bias=kind != "RNN")
    x, resets = random_rows(padded)
    calls = []

    def results(taken):
        monkeypatch.setattr(_layers, "at_once", lambda *_: calls.append(taken) or taken)
        wants = {"return_cells": True} if kind == "LSTM" else {}
        return trained(module, x, resets, **wants)

    for a, b in zip(results(True), results(False), strict=True):
        torch.testing.assert_close(a, b)
    assert calls == [True, False]
    with torch.no_grad():
        monkeypatch.setattr(_layers, "at_once", lambda *_: True)
        a = module(x)[0]
        monkeypatch.setattr(_layers, "at_once", lambda *_: False)
        b = module(x)[0]
    assert torch.equal(a if padded else a.data, b if padded else b.data)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, None),
        ({"dropout": 0.5}, "one launch has no dropout"),
        ({"zoneout": 0.1}, "one launch has no zoneout"),
        ({"layer_norm": True}, "one launch has no layer_norm"),
        ({"recompute": True}, "one launch has no recompute"),
        ({"bidirectional": True}, "both directions of a layer come before the next"),
    ],
    ids=str,
)
def test_what_runs_one_by_one_says_why(options, reason):
    module = fastrnn.LSTM(3, 5, 2, **options)
    assert wavefront.refusal(module) == reason
    if "dropout" in options:
        assert wavefront.refusal(module.eval()) is None


def taken(cell="lstm", layers=2, rows=(3, 2, 3)):
    return wavefront.at_once(cell, torch.zeros(rows), [[torch.zeros(1)] * 4] * layers)


def test_only_plain_layers_are_taken():
    assert taken()
    assert taken(layers=1)
    assert not taken(rows=(0, 2, 3))
    assert not taken("user's own")
    with fastrnn.use_backend("reference"):
        assert not taken()
    with torch.autocast("cpu"):
        assert not taken()
    found = []
    torch.func.vmap(lambda x: found.append(taken()) or x)(torch.zeros(2))
    assert found == [False]


def test_programs_have_the_operator_of_one_layer_for_one():
    module, x = fastrnn.GRU(3, 5), torch.randn(4, 2, 3)
    nodes = torch.export.export(module, (x,)).graph.nodes
    assert sum(node.target is torch.ops.fastrnn.recurrence.default for node in nodes) == 1
    found = []
    torch.jit.trace(lambda x: found.append(taken(layers=1)) or x, x)
    assert found[0] is False


def test_layers_that_are_held_fixed_get_no_gradients():
    module = fastrnn.GRU(3, 5, 2)
    for name, weight in module.named_parameters():
        weight.requires_grad_(name.endswith("_l1"))
    assert not wavefront.at_once("gru", torch.zeros(3, 2, 3), module.all_weights)
    module(torch.randn(3, 2, 3))[0].sum().backward()
    assert all((w.grad is None) == n.endswith("_l0") for n, w in module.named_parameters())


def test_modes_leave_nothing_behind():
    module, x, other = fastrnn.GRU(3, 4), torch.randn(17, 2, 3), torch.randn(16, 2, 3)
    with torch.inference_mode():
        expected = module(x)[0].clone()
        assert padded_sizes(x).tolist() == [2] * 17
    output = module(x)[0]
    output.sum().backward()  # keeps its sizes: not what inference mode made
    assert torch.equal(output, expected)
    with FakeTensorMode():
        assert isinstance(padded_sizes(other), FakeTensor)
    assert padded_sizes(other).tolist() == [2] * 16


def test_a_weight_that_does_not_fit_is_named_in_any_layer():
    module = fastrnn.LSTM(3, 5, 2)
    module.bias_hh_l1 = torch.nn.Parameter(torch.zeros(7))
    with pytest.raises(ValueError, match=r"bias_hh must be \[G\*H\] = \[20\], got \[7\]"):
        module(torch.randn(4, 2, 3))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_gradients_without_the_initial_states(kind, steps):
    torch.manual_seed(0)
    module = getattr(fastrnn, kind)(3, 20, 3, dtype=torch.float64)
    x = torch.randn(steps, 2, 3, dtype=torch.float64, requires_grad=True)
    states = 2 if kind == "LSTM" else 1
    zeros = [torch.zeros(3, 2, 20, dtype=torch.float64, requires_grad=True) for _ in range(states)]
    leaves = [x, *module.parameters()]

    def gradients(hx, of):
        output, last = module(x, hx)
        total = output.sin().sum() + sum(s.cos().sum() for s in (last if states > 1 else (last,)))
        return torch.autograd.grad(total, of)

    *expected, of_state = gradients(tuple(zeros) if states > 1 else zeros[0], [*leaves, zeros[0]])
    assert of_state.abs().sum() > 0
    for a, b in zip(gradients(None, leaves), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
def test_what_is_used_twice_counts_once_in_derivatives_of_derivatives(kind):
    """Layers of shared weights, weights made of others, and a first state made of the rows."""
    torch.manual_seed(0)
    module = kind(4, 4, 2, dtype=torch.float64)
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    shared = module.weight_hh_l0

    def derivatives():
        given = {"weight_ih_l1": module.weight_ih_l0, "weight_hh_l1": 0.5 * shared}
        packed = pack_padded_sequence(x, [3, 2])
        states = torch.stack([packed.data[:2], 0.7 * packed.data[:2]])
        hx = (states, states.tanh()) if kind is fastrnn.LSTM else states
        output, _ = torch.func.functional_call(module, given, (packed, hx))
        loss = output.data.square().sum()
        plain = torch.autograd.grad(loss, (x, shared), retain_graph=True)
        first = torch.autograd.grad(loss, (x, shared), create_graph=True)
        of_first = sum(g.square().sum() for g in first)
        return *plain, *first, *torch.autograd.grad(of_first, (x, shared))

    found = derivatives()
    with fastrnn.use_backend("reference"):
        expected = derivatives()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_many_gradients_at_once():
    torch.manual_seed(0)
    module, x = fastrnn.LSTM(4, 5, 3), torch.randn(3, 2, 4, requires_grad=True)
    output, (h_n, _) = module(x)
    leaves = (x, *module.parameters())
    many = torch.randn(3, *output.shape), torch.randn(3, *h_n.shape)
    found = torch.autograd.grad(
        (output, h_n), leaves, many, is_grads_batched=True, retain_graph=True
    )
    for k, each in enumerate(zip(*many, strict=True)):
        expected = torch.autograd.grad((output, h_n), leaves, each, retain_graph=True)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a[k], b)
