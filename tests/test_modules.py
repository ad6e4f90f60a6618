"""The modules against torch.nn: results and gradients."""

import copy
from itertools import product

import pytest
import torch
from module_pairs import CELLS, IN, LAYERS, B, H, T, floats, make_state, pair, tensor, tensors
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, rnn

import fastrnn
from fastrnn import modules

FORMS = ["padded", "padded hx", "unbatched", "unbatched hx", "packed", "unsorted hx"]


def make_call(module, form):
    """The arguments of a call of each form, and the leaves to differentiate."""
    stack = module.num_layers * (2 if module.bidirectional else 1)
    batch = () if "unbatched" in form else (B,)
    hx = make_state(module, stack, *batch) if "hx" in form else None
    if "padded" in form:
        x = tensor(B, T, IN) if module.batch_first else tensor(T, B, IN)
    elif "unbatched" in form:
        x = tensor(T, IN)
    else:
        parts = [tensor(n, IN) for n in ((3, 5, 2) if "unsorted" in form else (5, 3, 2))]
        x = rnn.pack_sequence(parts, enforce_sorted="unsorted" not in form)
        return (x, hx), [*parts, *floats(hx)]
    return (x, hx), [x, *floats(hx)]


def assert_same(theirs, ours, args, leaves):
    """Equal results and equal gradients for every leaf and parameter."""
    expected, got = theirs(*args), ours(*args)
    assert type(expected) is type(got)
    torch.testing.assert_close(tensors(got), tensors(expected), rtol=0, atol=1e-10)
    weights = [torch.randn_like(v) for v in floats(expected)]
    for result, module in ((expected, theirs), (got, ours)):
        loss = sum((v * w).sum() for v, w in zip(floats(result), weights, strict=True))
        targets = [*leaves, *module.parameters()]
        grads = torch.autograd.grad(loss, targets, retain_graph=True)
        if module is theirs:
            wanted = grads
    assert len(grads) > 2
    torch.testing.assert_close(grads, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "options"), LAYERS)
def test_layers_equal_torch(name, options, form):
    for layers, *flags in product((1, 2), *[(True, False)] * 3):
        common = dict(zip(("bias", "batch_first", "bidirectional"), flags, strict=True))
        theirs, ours = pair(name, IN, H, layers, **common, **options)
        assert_same(theirs, ours, *make_call(theirs, form))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("name", "options"), CELLS)
def test_cells_equal_torch(name, options, bias):
    theirs, ours = pair(name, IN, H, bias, **options)
    for batch in ((), (B,), (0,)):
        x = tensor(*batch, IN)
        hx = make_state(theirs, *batch)
        assert_same(theirs, ours, (x,), [x])
        assert_same(theirs, ours, (x, hx), [x, *floats(hx)])


@pytest.mark.parametrize(("name", "options"), LAYERS)
def test_zero_batch_and_strided_input(name, options):
    theirs, ours = pair(name, IN, H, 2, bidirectional=True, **options)
    for x in (
        tensor(T, 0, IN),
        tensor(IN, B, T).permute(2, 1, 0),
        tensor(T, 1, IN).expand(T, B, IN),
    ):
        assert_same(theirs, ours, (x,), [x])


@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_dropout_draws_what_torch_draws(name, form):
    theirs, ours = pair(name, IN, H, 3, dropout=0.5)
    args, _ = make_call(theirs, form)
    results = {}
    for training, module in product((True, False), (theirs, ours)):
        torch.manual_seed(1)
        results[training, module] = tensors(module.train(training)(*args))[0]
    torch.testing.assert_close(results[True, ours], results[True, theirs], rtol=0, atol=1e-10)
    torch.testing.assert_close(results[False, ours], results[False, theirs], rtol=0, atol=1e-10)
    assert not torch.allclose(results[True, ours], results[False, ours])


@pytest.mark.parametrize("layer", [True, False])
def test_gru_reset_before_against_a_loop(layer):
    x = tensor(T, B, IN)
    if layer:
        ours = modules.GRU(IN, H, reset_after=False, dtype=torch.float64)
        weights = ours._flat_weights
        output, h_n = ours(x)
    else:
        ours = modules.GRUCell(IN, H, reset_after=False, dtype=torch.float64)
        weights = [ours.weight_ih, ours.weight_hh, ours.bias_ih, ours.bias_hh]
        h_n, steps = None, []
        for x_t in x:
            h_n = ours(x_t, h_n)
            steps.append(h_n)
        output = torch.stack(steps)
    w_ih, w_hh, b_ih, b_hh = (w.chunk(3) for w in weights)
    h, expected = torch.zeros(B, H, dtype=torch.float64), []
    for x_t in x:
        r, z = (
            torch.sigmoid(x_t @ w_ih[k].T + b_ih[k] + h @ w_hh[k].T + b_hh[k]) for k in range(2)
        )
        n = torch.tanh(x_t @ w_ih[2].T + b_ih[2] + (r * h) @ w_hh[2].T + b_hh[2])
        h = (1 - z) * n + z * h
        expected.append(h)
    torch.testing.assert_close(output, torch.stack(expected), rtol=0, atol=1e-10)
    torch.testing.assert_close(h_n.reshape(B, H), h, rtol=0, atol=1e-10)
    for result in (output, torch.stack(expected)):
        grads = torch.autograd.grad(result.square().sum(), [x, *weights], retain_graph=True)
        if result is output:
            got = grads
    torch.testing.assert_close(got, grads, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "options"), [*LAYERS, *CELLS])
def test_updates_through_data_are_seen(name, options):
    theirs, ours = pair(name, IN, H, **options)
    x = tensor(B, IN) if "Cell" in name else tensor(T, B, IN)
    before = tensors(ours(x))[0]
    for module in (theirs, ours):
        for parameter in module.parameters():
            parameter.data.add_(torch.ones_like(parameter), alpha=0.1)
    assert not torch.allclose(tensors(ours(x))[0], before)
    assert_same(theirs, ours, (x,), [x])


def test_weights_may_be_parametrized_or_given():
    theirs, ours = pair("LSTM", IN, H)
    x = tensor(T, B, IN)
    doubled = {name: 2 * p for name, p in ours.named_parameters()}
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(functional_call(ours, doubled, (x,)), theirs(x), rtol=0, atol=1e-10)
    plain = ours(x)[0]
    parametrizations.weight_norm(ours, "weight_hh_l0")
    torch.testing.assert_close(ours(x)[0], plain, rtol=0, atol=1e-10)
    original = ours.parametrizations.weight_hh_l0.original1
    grad = torch.autograd.grad(ours(x)[0].sum(), original)[0]
    assert grad.abs().max() > 1e-3


def test_a_parametrization_runs_once_per_forward():
    class Counted(nn.Module):
        calls = 0

        def forward(self, weight):
            Counted.calls += 1
            return 2 * weight

    for module, name, x in (
        (modules.GRU(IN, H, 2), "weight_ih_l0", torch.zeros(T, B, IN)),
        (modules.GRUCell(IN, H), "weight_ih", torch.zeros(B, IN)),
    ):
        nn.utils.parametrize.register_parametrization(module, name, Counted())
        Counted.calls = 0
        module(x)
        assert Counted.calls == 1


@pytest.mark.parametrize(("name", "options"), [*LAYERS, *CELLS])
def test_last_states_may_be_detached_in_place(name, options):
    _, ours = pair(name, IN, H, **options)
    x = tensor(B, IN) if "Cell" in name else tensor(T, B, IN)
    states = ours(x) if "Cell" in name else ours(x)[1]
    for state in tensors(states):
        state.detach_()
        assert not state.requires_grad


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "GRUCell"])
def test_compiles_into_one_graph(name):
    _, ours = pair(name, IN, H)
    x = tensor(B, IN) if "Cell" in name else tensor(T, B, IN)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), ours(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}], ids=str)
def test_the_default_device_does_not_matter(options):
    module, x = fastrnn.GRU(3, 4, **options), torch.randn(5, 2, 3)
    calls = {
        "padded": lambda: module(x)[0],
        "lengths": lambda: module(x, lengths=[5, 3])[0],
        "resets": lambda: module(x, resets=torch.zeros(5, 2, dtype=torch.bool, device="cpu"))[0],
        "frozen": torch.no_grad()(lambda: copy.deepcopy(module).freeze()(x)[0]),
    }
    for name, call in calls.items():
        expected = call()
        with torch.device("meta"):
            found = call()
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("shape", [(3,), (2, 3)], ids=str)
def test_a_cells_state_may_be_changed_in_place(name, shape):
    cell, x = getattr(fastrnn, name)(3, 4), torch.randn(shape, requires_grad=True)
    expected = torch.autograd.grad(unwrapped(cell(x)).sum(), x)[0]
    h = unwrapped(cell(x))
    assert torch.equal(torch.autograd.grad(h.add_(1).sum(), x)[0], expected)


def unwrapped(states):
    return states[0] if isinstance(states, tuple) else states


def test_layers_run_again_by_the_backend_of_the_forward_pass():
    module, x = fastrnn.LSTM(3, 4, 2, recompute=True), torch.randn(5, 2, 3)
    with fastrnn.use_backend("reference"):
        loss = module(x)[0].square().sum()
        expected = torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))
    for a, b in zip(torch.autograd.grad(loss, list(module.parameters())), expected, strict=True):
        assert torch.equal(a, b)
