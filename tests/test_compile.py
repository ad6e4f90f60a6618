"""torch.compile and torch.export: one graph, the same gradients, no recompilation per length."""

from __future__ import annotations

import io

import pytest
import torch
from module_pairs import IN, B, H, T, floats, make_state, tensor, tensors
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export, load, save
from torch.nn.utils import parametrizations, rnn

import fastrnn
from fastrnn import _library, modules

pytestmark = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")
LAYERS = [
    ("RNN", {"nonlinearity": "relu"}),
    ("GRU", {"reset_after": False, "bias": False}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
]
CELLS = ["RNNCell", "GRUCell", "LSTMCell"]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(name, **options):
    torch.manual_seed(0)
    return getattr(modules, name)(IN, H, dtype=torch.float64, **options)


def compiled(module, **options):
    """The module in one graph, and the counter of its compilations.

    The first call may count twice: Dynamo starts over once it has seen numbers in the graph.
    """
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(module, fullgraph=True, backend=counter, **options), counter


def assert_equals_eager(module, run, *args):
    """Equal results and gradients, for every parameter and every leaf among the arguments."""
    results, grads = [], []
    for function in (module, run):
        found = tensors(function(*args))
        loss = sum((v * (1 + k)).square().sum() for k, v in enumerate(found) if v.requires_grad)
        targets = [*floats(args), *module.parameters()]
        results.append(found)
        grads.append(torch.autograd.grad(loss, targets))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), LAYERS)
def test_layers_in_one_graph_with_and_without_hx(name, options):
    module = build(name, **options)
    run, _ = compiled(module, dynamic=False)
    stack = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    x = tensor(B, T, IN) if module.batch_first else tensor(T, B, IN)
    assert_equals_eager(module, run, x)
    assert_equals_eager(module, run, x, make_state(module, stack, B))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *LAYERS,
        ("LSTM", {"num_layers": 2, "dropout": 0.5, "weight_dropout": 0.5}),
        ("GRU", {"num_layers": 2}),
    ],
)
def test_with_gradients_on_and_none_needed(name, options):
    module = build(name, **options).requires_grad_(False)
    run, _ = compiled(module, dynamic=False)
    x, found = tensor(T, B, IN).detach(), []
    for function in (module, run):
        torch.manual_seed(1)
        found.append(tensors(function(x)))
    assert not any(v.requires_grad for v in found[1])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_cells_in_one_graph_for_every_batch_size(name):
    module = build(name)
    run, counter = compiled(module, dynamic=True)
    for batch in (3, 7, 2):
        assert_equals_eager(module, run, tensor(batch, IN))
        assert_equals_eager(module, run, tensor(batch, IN), make_state(module, batch))
        if batch == 3:
            first = counter.frame_count
    assert counter.frame_count == first


@pytest.mark.parametrize(("name", "options"), LAYERS)
def test_one_compilation_for_every_length_and_batch_size(name, options):
    module = build(name, **options)
    run, counter = compiled(module)
    for shape in ((5, 3, IN), (7, 3, IN), (2, 4, IN), (31, 2, IN), (4, 9, IN)):
        x = tensor(*shape)
        for axis in (0, 1):
            torch._dynamo.mark_dynamic(x, axis)
        assert_equals_eager(module, run, x)
        if shape[0] == 5:
            first = counter.frame_count
    assert counter.frame_count == first


def test_lengths_become_dynamic_unasked():
    module = build("GRU")
    run, counter = compiled(module)
    for steps in (5, 7, 9, 2, 30):
        with torch.no_grad():
            torch.testing.assert_close(run(x := tensor(steps, B, IN)), module(x))
        if steps == 7:  # the second length makes the axis dynamic
            second = counter.frame_count
    assert counter.frame_count == second


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_packed_sequences_of_any_lengths(name):
    module = build(name)
    run, counter = compiled(module, dynamic=True)
    for lengths in ((3, 2), (7, 4, 4), (5, 5, 3, 1)):
        packed = rnn.pack_sequence([tensor(n, IN).detach() for n in lengths])
        assert_equals_eager(module, run, packed)
        if lengths == (3, 2):
            first = counter.frame_count
    assert counter.frame_count == first


def test_lengths_resets_and_recomputation_through_several_layers():
    module = build("GRU", num_layers=2, bidirectional=True, recompute=True)
    # The partitioner of inductor, which decides what is computed again.
    counter = CompileCounterWithBackend("aot_eager_decomp_partition")
    run = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for lengths in ([2, 5, 3], [1, 1, 4], [5, 5, 5]):
        x, options = tensor(T, B, IN), {"lengths": torch.tensor(lengths)}
        options["resets"] = torch.rand(T, B) < 0.3
        found, expected = run(x, **options), module(x, **options)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        targets = [x, *module.parameters()]
        grads = [torch.autograd.grad(y.square().sum(), targets) for y, _ in (found, expected)]
        torch.testing.assert_close(*grads, rtol=0, atol=1e-12)
        if lengths == [2, 5, 3]:
            first = counter.frame_count
    assert counter.frame_count == first


def test_unsorted_packing_inside_a_compiled_model():
    module = build("LSTM")

    def model(x, lengths):
        packed = rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        return rnn.pad_packed_sequence(module(packed)[0])[0]

    x, lengths = tensor(T, B, IN), torch.tensor([2, 5, 3])
    found = torch.compile(model, backend="aot_eager")(x, lengths)
    torch.testing.assert_close(found, model(x, lengths), rtol=0, atol=1e-12)


def test_a_model_around_it_trains_like_eager():
    """accelerate, then compile the whole: embedding, parametrized layer, loss and hooks."""
    torch.manual_seed(0)
    parts = {"embed": nn.Embedding(7, IN), "rnn": nn.GRU(IN, H), "out": nn.Linear(H, 7)}
    model = nn.ModuleDict(parts)
    fastrnn.accelerate(model.double())
    parametrizations.weight_norm(model["rnn"], "weight_hh_l0")
    tokens = torch.randint(7, (T, B))

    def loss():
        logits = model["out"](model["rnn"](model["embed"](tokens))[0])
        return nn.functional.cross_entropy(logits[:-1].flatten(0, 1), tokens[1:].flatten())

    curves = []
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        model.load_state_dict(state)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        curve = []
        for _ in range(4):
            optimizer.zero_grad()
            value = run()
            value.backward()
            optimizer.step()
            curve.append(value.item())
        curves.append(curve)
    assert curves[0][-1] < curves[0][0] - 0.1
    assert curves[1] == pytest.approx(curves[0], abs=1e-10)


def test_updates_and_eval_mode_are_seen():
    module = build("LSTM", num_layers=2, dropout=0.5)
    run, _ = compiled(module)
    x = tensor(T, B, IN)
    module.eval()
    first = run(x)[0]
    torch.testing.assert_close(first, module(x)[0])
    module.weight_hh_l0.data.add_(0.5)
    assert not torch.allclose(run(x)[0], first)
    module.train()
    assert not torch.equal(run(x)[0], run(x)[0])


def test_wrong_sizes_are_named_inside_a_graph():
    run = torch.compile(build("LSTM"), backend="aot_eager")
    with pytest.raises(RuntimeError, match="must be equal to input_size. Expected 4, got 5"):
        run(tensor(T, B, IN + 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_inductor(name):
    module = build(name, num_layers=2)
    run = torch.compile(module, fullgraph=True)
    assert_equals_eager(module, run, tensor(T, B, IN))
    assert_equals_eager(module, run, tensor(T + 3, B + 1, IN))


@pytest.mark.parametrize(("name", "options"), LAYERS)
def test_export_through_a_file(name, options):
    module = build(name, **options).eval()
    stack = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    args = (tensor(T, B, IN).detach(), make_state(module, stack, T if module.batch_first else B))
    first, second = Dim("first"), Dim("second")
    batch = first if module.batch_first else second
    state = ({1: batch}, {1: batch}) if name == "LSTM" else {1: batch}
    program = export(module, args, dynamic_shapes={"input": {0: first, 1: second}, "hx": state})
    file = io.BytesIO()
    save(program, file)
    file.seek(0)
    loaded = load(file)
    names = {str(node.target) for node in loaded.graph.nodes}
    ours = "recurrence_both" if "bidirectional" in options else "recurrence"
    assert f"fastrnn.{ours}.default" in names and not any("aten.mm" in n for n in names)
    for shape in ((T, B, IN), (9, 4, IN)):
        x = tensor(*shape)
        hx = make_state(module, stack, shape[0] if module.batch_first else shape[1])
        torch.testing.assert_close(loaded.module()(x, hx), module(x, hx), rtol=0, atol=1e-12)
    assert list(loaded.state_dict) == list(module.state_dict())


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize("name", [*CELLS, "LSTM"])
def test_exported_programs_keep_gradients(name, strict):
    module = build(name)
    x = tensor(B, IN)
    program = export(module, (x,), dynamic_shapes={"input": {0: Dim("batch")}}, strict=strict)
    exported = program.module()
    found, expected = tensors(exported(x)), tensors(module(x))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    grads = torch.autograd.grad(sum(f.sum() for f in found), list(exported.parameters()))
    wanted = torch.autograd.grad(sum(e.sum() for e in expected), list(module.parameters()))
    torch.testing.assert_close(grads, wanted, rtol=0, atol=1e-12)
