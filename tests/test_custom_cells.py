"""A user's own cell: registered, checked, run, differentiated, compiled."""

import copy

import pytest
import torch
from module_pairs import IN, B, H, T, tensor
from torch.func import functional_call, grad, vmap

import fastrnn
from fastrnn import cells
from fastrnn.cells import CELLS, Cell


def mgu(x, h, prev):
    """The minimal gated unit in its one-product form (Zhou et al. 2016)."""
    f = torch.sigmoid(x[0] + h[0])
    return ((1 - f) * prev[0] + f * torch.tanh(x[1] + f * h[1]),), ()


def peephole(x, h, prev):
    """Two states and a reserve."""
    c = torch.tanh(x[0] + h[0]) + 0.5 * prev[1]
    return (torch.sigmoid(x[1] + h[1] + c), c), (c * c,)


def blend_operand(x, h, prev):
    r = torch.sigmoid(x[0] + h[0])
    return r * prev[0], (r,)


def blend(x, h, prev, reserve):
    """Two products a step."""
    return (torch.tanh(x[0] + h[0]) - prev[0] * reserve[0],), reserve


OWN = {
    "mgu": Cell(gates=2, states=1, reserve=0, forward=mgu),
    "peephole": Cell(gates=2, states=2, reserve=1, forward=peephole),
    "blend": Cell(2, 1, 1, blend, operand_gates=1, operand=blend_operand),
}


@pytest.fixture(autouse=True)
def registered():
    state = torch.get_rng_state()
    for name, cell in OWN.items():
        cells.register(name, cell)
    assert torch.equal(torch.get_rng_state(), state)
    yield
    for name in OWN:
        del CELLS[name]


def build(name, **options):
    return fastrnn.RNNOf(name, IN, H, dtype=torch.float64, **options)


def by_hand(name, module, x):
    cell, w = OWN[name], module.all_weights[0]
    states, outputs = tuple(torch.zeros(B, H).double() for _ in range(cell.states)), []
    for x_t in x:
        gates = (x_t @ w[0].T + w[2]).chunk(2, 1)
        hidden = (states[0] @ w[1].T + w[3]).chunk(2, 1)
        if cell.operand is None:
            states, _ = cell.forward(gates, hidden, states)
        else:
            operand, kept = cell.operand(gates[:1], hidden[:1], states)
            hidden = (operand @ w[1][H:].T + w[3][H:],)
            states, _ = cell.forward(gates[1:], hidden, states, kept)
        outputs.append(states[0])
    return torch.stack(outputs), states


@pytest.mark.parametrize("name", OWN)
def test_equals_a_loop_by_hand(name):
    module, x = build(name), tensor(T, B, IN)
    output, last = module(x)
    expected, states = by_hand(name, module, x)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    last = last if isinstance(last, tuple) else (last,)
    torch.testing.assert_close(tuple(s[0] for s in last), states, rtol=0, atol=1e-12)
    leaves = [x, *module.parameters()]
    totals = [values.square().sum() for values in (output, expected)]
    torch.testing.assert_close(*(torch.autograd.grad(total, leaves) for total in totals))


@pytest.mark.parametrize("name", OWN)
def test_gradients_of_second_order_vmap_and_compile(name):
    small, x = fastrnn.RNNOf(name, 2, 2, dtype=torch.float64), tensor(3, 2, 2)
    assert torch.autograd.gradgradcheck(lambda x: small(x)[0], x)
    module, x = build(name, num_layers=2, bidirectional=True), tensor(T, B, IN)
    parameters = {key: p.detach() for key, p in module.named_parameters()}

    def loss(parameters, x):
        return functional_call(module, parameters, (x,))[0].square().sum()

    assert vmap(grad(loss), (None, 1))(parameters, x.detach())["weight_hh_l1"].shape[0] == B
    torch._dynamo.reset()  # what other tests compiled counts as recompilation
    compiled = torch.compile(build(name), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x[:3]), compiled._orig_mod(x[:3]), rtol=0, atol=1e-12)
    lengths = [2, 5, 3]
    found = module(x, lengths=lengths)[0]
    torch.testing.assert_close(found[:2, 0], module(x[:2, 0])[0], rtol=0, atol=1e-12)


def test_the_reason_against_native():
    module = build("mgu")
    text = fastrnn.explain(module)
    assert text.startswith("reference: runs mgu")
    assert fastrnn._library.unavailable or "native: no, no compiled kernel for cell 'mgu'" in text
    with fastrnn.use_backend("native"), pytest.raises(RuntimeError, match="native"):
        module(torch.zeros(T, B, IN).double())


def test_of_a_cell_of_ours_it_is_the_module():
    torch.manual_seed(0)
    ours = fastrnn.LSTM(IN, H, 2, layer_norm=True)
    torch.manual_seed(0)
    module = fastrnn.RNNOf("lstm", IN, H, 2, layer_norm=True)
    x = torch.randn(T, B, IN)
    assert torch.equal(module(x)[0], ours(x)[0])
    assert repr(module) == "RNNOf('lstm', 4, 6, num_layers=2, layer_norm=True)"
    assert torch.equal(copy.deepcopy(module)(x)[0], ours(x)[0])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_cell_is_registered_without_gradients(mode):
    with mode():
        cells.register("without", OWN["blend"])
        output = fastrnn.RNNOf("without", IN, H)(torch.ones(T, B, IN))[0]
    del CELLS["without"]
    assert not output.requires_grad


def test_wrong_states_of_an_own_cell():
    with pytest.raises(
        RuntimeError, match="^peephole expects two hidden states: .* got one Tensor"
    ):
        build("peephole")(torch.zeros(T, B, IN).double(), torch.zeros(1, B, H).double())


def test_layer_norm_of_an_own_cell_is_refused():
    with pytest.raises(ValueError, match="RNNOf: layer_norm needs an LSTM, or a GRU"):
        build("mgu", layer_norm=True)
    with pytest.raises(ValueError, match=r"RNNOf: cell must be one of \['lstm', .*, got 'none'"):
        build("none")
    with pytest.raises(ValueError, match=r"RNNOf: cell must be one of .*, got \['lstm'\]"):
        fastrnn.RNNOf(["lstm"], IN, H)


def test_a_projection_of_an_own_cell_is_refused():
    with pytest.raises(
        TypeError,
        match=r"RNNOf\(\) got an unexpected keyword argument 'proj_size': no cell but fastrnn",
    ):
        build("mgu", proj_size=2)


def changed(**sizes):
    return Cell(**{"gates": 2, "states": 1, "reserve": 0, "forward": mgu, **sizes})


@pytest.mark.parametrize(
    ("name", "cell", "error", "message"),
    [
        ("mgu", changed(), ValueError, "name must be new, got 'mgu', one of"),
        ("lstm", changed(), ValueError, "name must be new, got 'lstm'"),
        (3, changed(), TypeError, "name must be a str, got int"),
        ("new", mgu, TypeError, "cell must be a fastrnn.cells.Cell, got function"),
        ("new", changed(gates=0), ValueError, "gates must be at least 1, got 0"),
        ("new", changed(states=1.0), TypeError, "states must be an int, got float"),
        ("new", changed(reserve=-1), ValueError, "reserve must be at least 0, got -1"),
        (
            "new",
            changed(gates=1),
            ValueError,
            r"forward failed on tensors \[2, 3\]: IndexError: tu",
        ),
        ("new", changed(states=2), ValueError, "forward's next states must be 2 tensors, got 1"),
        ("new", changed(reserve=1), ValueError, "forward's reserve must be 1 tensors, got 0"),
        ("new", changed(forward=None), TypeError, "forward must be callable, got NoneType"),
        (
            "new",
            changed(operand_gates=1),
            ValueError,
            "operand and operand_gates must be given tog",
        ),
        (
            "new",
            changed(operand_gates=2, operand=blend_operand),
            ValueError,
            "operand_gates must be below gates = 2, got 2",
        ),
        ("new", changed(forward=lambda x, h, p: x[0]), TypeError, "must return a pair, got Tensor"),
        (
            "new",
            changed(forward=lambda x, h, p: (x[0], ())),
            TypeError,
            "next states must be a tuple of tensors, got Tensor",
        ),
        (
            "new",
            changed(forward=lambda x, h, p: ((x[0].sum(1),), ())),
            ValueError,
            r"next states must hold torch.float64 \[2, 3\] for such arguments, got .* \[2\]",
        ),
        (
            "new",
            changed(forward=lambda x, h, p: ((x[0].float(),), ())),
            ValueError,
            r"got torch.float32 \[2, 3\]",
        ),
        (
            "new",
            changed(forward=lambda x, h, p: ((x[0].detach(),), ())),
            ValueError,
            "forward must be differentiable, got a detached state",
        ),
    ],
)
def test_registration_checks(name, cell, error, message):
    before = dict(CELLS)
    with pytest.raises(error, match=f"register: .*{message}") as raised:
        cells.register(name, cell)
    assert "\n" not in str(raised.value)
    assert before == CELLS


def test_a_module_whose_cell_is_not_registered(monkeypatch):
    """As one that was loaded in another process."""
    module = build("mgu")
    monkeypatch.delitem(CELLS, "mgu")
    with pytest.raises(RuntimeError, match="RNNOf: cell 'mgu' must be registered in this process"):
        module(tensor(T, B, IN))
    assert "mgu" in repr(module)
