"""Plain layers and cells over padded rows: the bits of the general operators, errors as clear."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

import fastrnn
from fastrnn import _layers, _library, single_step
from fastrnn.plain import Plain
from tests.layers import assert_as_close_as_torch

pytestmark = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")

LAYERS = torch.ops.fastrnn.recurrence_layers.default
BACKWARD = torch.ops.fastrnn.recurrence_layers_backward.default
KINDS = ["RNN", "GRU", "LSTM"]
T, B, IN, H = 4, 3, 5, 7


@pytest.fixture
def calls(monkeypatch):
    """The calls of `run_layers`."""
    calls = []
    for place in (_layers, single_step):
        run = place.run_layers
        monkeypatch.setattr(place, "run_layers", lambda *a, run=run: calls.append(a) or run(*a))
    return calls


def hx(kind, *shape, dtype=torch.float32):
    states = tuple(torch.randn(*shape, dtype=dtype) for _ in range(2))
    return states if kind.startswith("LSTM") else states[0]


def results(module, x, state):
    """What a layer or a cell gives, as a list; the state as tensors that want gradients."""
    leaves = [s.requires_grad_() for s in (state if isinstance(state, tuple) else (state,))]
    found = module(x, state)
    if not isinstance(found, tuple):
        found = (found,)
    flat = [t for each in found for t in (each if isinstance(each, tuple) else (each,))]
    return flat, [x, *module.parameters(), *leaves]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_have_the_same_bits(monkeypatch, calls, kind, layers, directions, dtype):
    torch.manual_seed(0)
    options = {"bias": layers > 1, "bidirectional": directions == 2}
    module = getattr(fastrnn, kind)(IN, H, layers, **options).to(dtype)
    for given in (hx(kind, directions * layers, B, H, dtype=dtype), None):
        x = torch.randn(T, B, IN, dtype=dtype)
        with torch.no_grad():
            found = module(x, given)
        torch.testing.assert_close(found, module(x, given), rtol=0, atol=0)
        assert len(calls) == 2
        with monkeypatch.context() as patch:
            patch.setattr(_layers, "watched", lambda: True)
            torch.testing.assert_close(found, module(x, given), rtol=0, atol=0)
        assert len(calls) == 2
        calls.clear()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_cells_have_the_same_bits(monkeypatch, calls, kind, bias):
    torch.manual_seed(0)
    module = getattr(fastrnn, kind + "Cell")(IN, H, bias)
    x, states = torch.randn(B, IN), hx(kind, B, H)
    kept = copy.deepcopy(states)
    for given in (states, None):
        with torch.no_grad():
            found = module(x, given)
        torch.testing.assert_close(found, module(x, given), rtol=0, atol=0)
        assert len(calls) == 2
        with monkeypatch.context() as patch:
            patch.setattr(single_step, "at_once", lambda *_: False)
            torch.testing.assert_close(found, module(x, given), rtol=0, atol=0)
        assert len(calls) == 2
        calls.clear()
    for state in found if kind == "LSTM" else (found,):
        state.add_(1)  # its own, not a view
    torch.testing.assert_close(states, kept, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["cell", "layers", "both directions"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_have_the_same_bits(monkeypatch, calls, kind, form):
    torch.manual_seed(0)
    if form == "cell":
        module, x = getattr(fastrnn, kind + "Cell")(IN, H), torch.randn(B, IN)
        state = hx(kind, B, H)
        general = partial(monkeypatch.setattr, single_step, "at_once", lambda *_: False)
    else:
        both = form == "both directions"
        module, x = getattr(fastrnn, kind)(IN, H, 2, bidirectional=both), torch.randn(T, B, IN)
        state = hx(kind, 4 if both else 2, B, H)
        general = partial(monkeypatch.setattr, _layers, "watched", lambda: True)
    found, leaves = results(module, x.requires_grad_(), state)
    assert len(calls) == 1
    general()
    expected, _ = results(module, x, state)
    assert len(calls) == 1
    for kept in (range(len(found)), *([i] for i in range(len(found)))):  # the others' are absent
        grads = [
            torch.autograd.grad(
                sum(made[i].sin().sum() for i in kept),
                leaves,
                retain_graph=True,
                materialize_grads=True,
            )
            for made in (found, expected)
        ]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
            assert a.shape == b.shape and a.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "units"), [(1, 126), (3, 73), (10, 40)])
@pytest.mark.parametrize(
    ("kind", "options"), [("GRU", {"reset_after": False}), *((kind, {}) for kind in KINDS)]
)
def test_layers_at_once_have_the_bits_of_one_thread(kind, options, batch, units, dtype):
    """Of three layers, as many as there are threads run at once: here none, two, and all."""
    torch.manual_seed(0)
    module = getattr(fastrnn, kind)(IN, units, 3, **options).to(dtype)
    x, state = torch.randn(70, batch, IN, dtype=dtype), hx(kind, 3, batch, units, dtype=dtype)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            with torch.no_grad():
                plain = module(x, state)[0]
            made, leaves = results(module, x.requires_grad_(), state)
            grads = torch.autograd.grad(sum(t.sin().sum() for t in made), leaves)
        finally:
            torch.set_num_threads(before)
        found.append([plain, *made, *grads])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert all(t.any() for t in found[0])


@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"variational": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers_has_the_same_bits(monkeypatch, calls, kind, options, states):
    torch.manual_seed(0)
    module = getattr(fastrnn, kind)(IN, H, 3, batch_first=True, dropout=0.4, **options)
    x, both = torch.randn(B, T, IN, requires_grad=True), "bidirectional" in options
    given = hx(kind, 6 if both else 3, B, H) if states else None
    found = []
    for plain in (True, False):
        with monkeypatch.context() as patch:
            if not plain:
                patch.setattr(_layers, "watched", lambda: True)
            torch.manual_seed(1)
            output, last = module(x, given)
        last = last if kind == "LSTM" else (last,)
        loss = sum((each.sin() * (k + 1)).sum() for k, each in enumerate((output, *last)))
        grads = torch.autograd.grad(loss, [x, *module.parameters()])
        found.append((output, *last, *grads))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert len(calls) == 1
    module.eval()(x, given)
    assert len(calls) == 2  # with nothing between


@pytest.mark.parametrize(
    ("batch", "inputs", "hidden", "dtype"),
    [
        (40, 90, 70, torch.float32),
        (60, 33, 130, torch.float64),
        (40, 70, 90, torch.bfloat16),
        (36, 40, 1100, torch.float32),
    ],
)
@pytest.mark.parametrize("kind", [*KINDS, "GRU, reset before"])
def test_weights_that_are_read_once_give_the_same_bits(kind, batch, inputs, hidden, dtype):
    # A step of which a part of the sequences begins anew has its weights packed beforehand.
    torch.manual_seed(0)
    kind, *before = kind.split(",")
    module = getattr(fastrnn, kind)(inputs, hidden, **({"reset_after": False} if before else {}))
    module, x = module.to(dtype), torch.randn(1, batch, inputs, dtype=dtype, requires_grad=True)
    state, grad = torch.randn(1, batch, hidden, dtype=dtype), torch.randn(1, batch, hidden)
    resets = torch.arange(batch)[None] >= batch // 2
    found = []
    for options in ({}, {"resets": resets}):
        states = [s.requires_grad_() for s in (state.clone(), -state)]
        output, last = module(x, tuple(states) if kind == "LSTM" else states[0], **options)
        last = last if kind == "LSTM" else (last,)
        leaves = [x, *states[: len(last)]]
        grads = torch.autograd.grad([output, *last], leaves, [grad.to(dtype)] * (1 + len(last)))
        found.append([t[~resets] for t in (output, *last, *grads)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8, 9, 31, 32])
@pytest.mark.parametrize("kind", [*KINDS, "GRU, reset before"])
def test_a_step_of_few_rows_is_as_exact(kind, batch, dtype):
    """Weights are multiplied as they lie, in sums along k; nothing of it depends on threads."""
    torch.manual_seed(0)
    kind, *before = kind.split(",")
    options = {"reset_after": False} if before else {}
    cell = getattr(fastrnn, kind + "Cell")(70, 277, **options).to(dtype)
    exact = copy.deepcopy(cell).double()
    x = torch.randn(batch, 70, dtype=dtype)
    given = hx(kind, batch, 277, dtype=dtype)
    wide = tuple(s.double() for s in given) if kind == "LSTM" else given.double()
    threads = torch.get_num_threads()
    with torch.no_grad():
        found = cell(x, given)
        torch.set_num_threads(3)
        try:
            torch.testing.assert_close(cell(x, given), found, rtol=0, atol=0)
        finally:
            torch.set_num_threads(threads)
        with fastrnn.use_backend("reference"):
            rough, expected = cell(x, given), exact(x.double(), wide)
    floor = {torch.float32: 5e-7, torch.float64: 1e-14, torch.bfloat16: 4e-3}[dtype]
    every = [r if kind == "LSTM" else (r,) for r in (found, rough, expected)]
    for k, each in enumerate(zip(*every, strict=True)):
        assert_as_close_as_torch(f"state {k}", *each, floor)


@pytest.mark.parametrize("rows", [(1, 1), (1, 4), (2, 2), (5, 1)])
def test_weights_gradients_of_few_rows(rows):
    torch.manual_seed(0)
    ours, peer = fastrnn.LSTM(21, 37).double(), torch.nn.LSTM(21, 37).double()
    ours.load_state_dict(peer.state_dict())
    x, grad = (torch.randn(*rows, n, dtype=torch.float64) for n in (21, 37))
    for module in (ours, peer):
        module(x)[0].backward(grad)
    for a, b in zip(ours.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("batch", [1, 4, 26, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_long_sums_is_as_exact(kind, batch):
    """Sums of thousands of terms: in long chains they had up to four times torch's error."""
    torch.manual_seed(0)
    peer = getattr(torch.nn, kind + "Cell")(650, 1100)
    ours = getattr(fastrnn, kind + "Cell")(650, 1100)
    ours.load_state_dict(peer.state_dict())
    tensors = [torch.randn(batch, n) for n in (650, 1100, 1100, 1100)]
    found = []
    for module in (ours, peer, copy.deepcopy(peer).double()):
        dtype = module.weight_ih.dtype
        x, h, c, grad = (t.to(dtype, copy=True) for t in tensors)
        leaves = [x.requires_grad_(), h.requires_grad_(), *module.parameters()]
        last = module(x, (h, c) if kind == "LSTM" else h)
        output = last[0] if kind == "LSTM" else last
        found.append([output.detach(), *torch.autograd.grad(output, leaves, grad)])
    for k, each in enumerate(zip(*found, strict=True)):
        assert_as_close_as_torch(f"result {k}", *each, 1e-7)


def test_gradients_that_nobody_wants_are_not_made():
    module, x, state = fastrnn.GRU(IN, H, 2), torch.randn(T, B, IN), torch.zeros(2, B, H)
    module.requires_grad_(False)
    for wanted in (x, state):
        wanted.requires_grad_()
        module(x, state)[0].sum().backward()
        assert wanted.grad.any()
        wanted.grad = None
        wanted.requires_grad_(False)
    assert all(p.grad is None for p in module.parameters())
    module.weight_hh_l0.requires_grad_(), module.weight_hh_l1.requires_grad_()
    module(x, state)[0].sum().backward()
    having = [name for name, p in module.named_parameters() if p.grad is not None]
    assert having == ["weight_hh_l0", "weight_hh_l1"] and x.grad is None


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell", "RNN", "LSTM", "GRU, both directions"])
def test_gradients_of_gradients(kind, given):
    torch.manual_seed(0)
    kind, *both = kind.split(",")
    module = getattr(fastrnn, kind)(2, 3, **({"bidirectional": True} if both else {})).double()
    cell = kind.endswith("Cell")
    x = torch.randn(*(() if cell else (2,)), 2, 2, dtype=torch.float64, requires_grad=True)
    shape = (*(() if cell else (2 if both else 1,)), 2, 3)
    state = hx(kind, *shape, dtype=torch.float64) if given else None
    names, weights = zip(*module.named_parameters(), strict=True)

    def run(x, *weights):
        named = dict(zip(names, weights, strict=True))
        found = torch.func.functional_call(module, named, (x, state))
        return found[1] if isinstance(found, tuple) else found

    assert torch.autograd.gradcheck(run, (x, *weights), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, (x, *weights))


def test_what_was_changed_in_place_is_named():
    cell, layer = fastrnn.LSTMCell(IN, H), fastrnn.LSTM(IN, H, batch_first=True)
    output, (h_n, _) = layer(torch.randn(B, T, IN))
    h_n.detach_()
    with torch.no_grad():
        output.zero_()
    h, c = cell(torch.randn(B, IN))
    h.detach_()
    c.sum().backward()  # its own
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_pass_may_be_gone_back_over_twice():
    layer, x = fastrnn.GRU(IN, H, 2), torch.randn(T, B, IN)
    loss = layer(x.mT.contiguous().mT)[0].sum()
    first = torch.autograd.grad(loss, layer.weight_hh_l0, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, layer.weight_hh_l0), first, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


def test_other_devices_keep_to_the_operator_that_they_have(monkeypatch, calls):
    monkeypatch.setattr(_layers, "at_once", lambda *_: True)
    with torch.no_grad():
        output, _ = fastrnn.GRU(IN, H, 2, device="meta")(torch.zeros(T, B, IN, device="meta"))
    assert calls == [] and output.shape == (T, B, H)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_does_not_fit_is_named(kind):
    layer, cell = getattr(fastrnn, kind)(IN, H, 2), getattr(fastrnn, kind + "Cell")(IN, H)
    layer.weight_hh_l1 = torch.nn.Parameter(torch.zeros(3, H))
    cell.weight_hh = torch.nn.Parameter(torch.zeros(3, H))
    for module, x in ((layer, torch.randn(T, B, IN)), (cell, torch.randn(B, IN))):
        for wanted in (False, True):
            misfit = pytest.raises(ValueError, match=r"weight_hh must be \[G\*H, H\] = ")
            with torch.set_grad_enabled(wanted), misfit:
                module(x)


def arguments(form, states):
    """The forward operator's for an LSTM or its cell: input, states, weights, and the options."""
    cell, both = form == "cell", form == "both directions"
    module = fastrnn.LSTMCell(IN, H) if cell else fastrnn.LSTM(IN, H, 2, bidirectional=both)
    x = torch.randn(B, IN) if cell else torch.randn(T, B, IN)
    shape = (B, H) if cell else (4 if both else 2, B, H)
    given = [torch.randn(shape) for _ in range(states)]
    return x, given, [w.detach() for w in module.parameters()], H, "lstm", both, True


@pytest.mark.parametrize("states", [0, 2])
@pytest.mark.parametrize("form", ["cell", "layers", "both directions"])
def test_opcheck(form, states):
    args = arguments(form, states)
    for save in (False, True):
        torch.library.opcheck(LAYERS, (*args, False, save))
    output, *rest = LAYERS(*args, False, True)
    options, grad = args[3:], torch.randn_like(output)
    for wanted in ((True, states > 0, True), (False, False, True), (True, states > 0, False)):
        saved = rest[2:] if form == "both directions" else [*rest[2:], output]
        every = (grad, rest[:2], *args[:3], saved, *options, *wanted)
        torch.library.opcheck(BACKWARD, every)


def test_operators_refuse_what_does_not_fit():
    weights = [w.detach() for w in fastrnn.LSTM(IN, H).all_weights[0]]
    x, state = torch.randn(T, B, IN), torch.randn(1, B, H)
    plain, both = (H, "lstm", False, True, False, False), (H, "lstm", True, True, False, False)
    wrong = [
        ((x, [], [], *plain), "weights must be 4 tensors"),
        ((x, [], weights[:3], *plain), "weights must be 4 tensors"),
        ((x[0, 0], [], weights, *plain), r"input must be \[T, B, I\] with T > 0 or \[B, I\]"),
        ((x[:0], [], weights, *plain), r"input must be \[T, B, I\] with T > 0"),
        ((x[0], [], weights * 2, *plain), r"input must be \[T, B, I\] with T > 0, got"),
        ((x, [], weights, H + 1, *plain[1:]), "weight_ih must be"),
        ((x, [state], weights, *plain), "states must be 2 or none, got 1"),
        ((x, [state, state[0]], weights, *plain), r"state must be \[1, 3, 7\]"),
        ((x[0], [state, state], weights, *plain), r"state must be \[3, 7\]"),
        ((x, [state.double()] * 2, weights, *plain), "state must have the input's"),
        ((x, [], weights, *both), "weights must be 8 tensors for each layer, got 4 in all"),
        ((x[0], [], weights * 2, *both), r"input must be \[T, B, I\] with T > 0, got"),
        ((x, [state, state], weights * 2, *both), r"state must be \[2, 3, 7\]"),
        ((x, [], weights * 4, *both), r"weight_ih must be \[28, 14\]"),
        ((x, [], weights, *plain[:4], True, False), "weights must be 3 tensors"),
        ((x, [], weights[:3], *plain[:4], True, False), "bias_ih must be"),
        ((x, [], weights[:3], *plain[:4], True, True), "packed weights have no gradients"),
        ((x, [], weights, 0, *plain[1:]), "hidden size must be at least 1, got 0"),
        ((x, [], weights, H, "lstn", *plain[2:]), "no compiled cell"),
    ]
    for args, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            LAYERS(*args)
    output, *ends, cells, reserve = LAYERS(x, [], weights, *plain[:5], True)
    saved, rest = [cells, reserve, output], (*plain[:4], True, False, True)
    for args, message in [
        ((output, [], x, [], weights, saved[:2], *rest), "saved must have three tensors"),
        ((output, [], x, [], weights, [cells, cells, output], *rest), "reserve must be"),
        (
            (output, [], x, [], weights, [cells, reserve, x], *rest),
            r"output must be contiguous with the elements of \[12, 7\], got \[4, 3, 5\]",
        ),
        (
            (output, [], x, [], weights, [cells, reserve, output.byte()], *rest),
            "output must have the input's",
        ),
        ((output[0], [], x, [], weights, saved, *rest), "grad_output must be"),
        ((output, ends[:1], x, [], weights, saved, *rest), "grad_states must be 2 or none, got 1"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            BACKWARD(*args)


def test_no_sequence():
    cell, x = fastrnn.LSTMCell(IN, H), torch.zeros(0, IN)
    h, c = cell(x)
    (h.sum() + c.sum()).backward()
    assert h.shape == c.shape == (0, H) and not cell.weight_ih.grad.any()
    args = (x, [], [w.detach() for w in cell.parameters()], H, "lstm", False, True, False, False)
    assert [t.shape for t in LAYERS(*args)] == [(0, H)] * 3
    args = (x[None], args[1], args[2] * 2, H, "lstm", True, True, False, False)
    assert [t.shape for t in LAYERS(*args)] == [(1, 0, 2 * H), (2, 0, H), (2, 0, H)]


def test_results_that_want_no_gradients():
    x = torch.randn(T, B, IN)
    weights = [w for w in fastrnn.LSTM(IN, H).parameters()]
    found = Plain.apply(0, H, "lstm", False, True, x, *weights)
    assert [t.requires_grad for t in found] == [True] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_under_autocast_takes_states_of_another_dtype(kind):
    torch.manual_seed(0)
    peer, x = getattr(torch.nn, kind + "Cell")(IN, H), torch.randn(B, IN)
    ours = getattr(fastrnn, kind + "Cell")(IN, H)
    ours.load_state_dict(peer.state_dict())
    states = [torch.rand(B, H).half() for _ in range(2 if kind == "LSTM" else 1)]
    wide = [s.double() for s in states]
    given, exact = (tuple(s) if kind == "LSTM" else s[0] for s in (states, wide))
    with torch.autocast("cpu", torch.bfloat16):
        found = [as_tuple(cell(x, given)) for cell in (ours, peer)]
    found.append(as_tuple(peer.double()(x.double(), exact)))
    for k, each in enumerate(zip(*found, strict=True)):
        assert_as_close_as_torch(f"state {k}", *each, 2**-9)


def as_tuple(found):
    return found if isinstance(found, tuple) else (found,)
