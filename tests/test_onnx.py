"""Exported models hold standard ONNX nodes and compute what ours compute, at other sizes too."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import pytest
import torch
from module_pairs import tensors
from torch import nn

import fastrnn
import fastrnn.onnx
from fastrnn.onnx import export

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
reference = pytest.importorskip("onnx.reference")

IN, H, T, B = 4, 6, 5, 3
OTHER_SIZES = [(1, 1), (7, 2)]
FAMILIES = {
    "lstm": (fastrnn.LSTM, fastrnn.LSTMCell, {}),
    "gru": (fastrnn.GRU, fastrnn.GRUCell, {}),
    "gru_reset_before": (fastrnn.GRU, fastrnn.GRUCell, {"reset_after": False}),
    "rnn_tanh": (fastrnn.RNN, fastrnn.RNNCell, {}),
    "rnn_relu": (fastrnn.RNN, fastrnn.RNNCell, {"nonlinearity": "relu"}),
}
NAMES = ("num_layers", "bidirectional", "bias", "batch_first", "state")


def every_option():
    """Each option with each other one."""
    for values in itertools.product((1, 2), *[(False, True)] * 4):
        yield dict(zip(NAMES, values, strict=True))


def every_pair():
    """Fewer: each pair of values of two options occurs twice."""
    for two, bias, first in itertools.product((False, True), repeat=3):
        yield dict(zip(NAMES, (1 + two, bias, first, two ^ bias, two ^ first), strict=True))


class Relu(reference.ops.op_rnn.RNN_14):
    """The reference evaluator's RNN, which knows no Relu."""

    op_domain = ""

    def choose_act(self, name, alpha, beta):
        return (lambda x: x.clip(0)) if name == "Relu" else super().choose_act(name, alpha, beta)


Relu.__name__ = "RNN"


class Zoo(nn.Module):
    """Layers of one family with all kinds of options, and its cells."""

    def __init__(self, layer, cell, options, calls):
        super().__init__()
        self.calls = list(calls)
        built = [{k: v for k, v in call.items() if k != "state"} for call in self.calls]
        self.layers = nn.ModuleList(layer(IN, H, **options, **kept) for kept in built)
        self.cells = nn.ModuleList(cell(IN, H, bias=bias, **options) for bias in (True, False))

    def forward(self, rows, h, c):
        """All outputs and states; rows [T, B, I], h and c [4, B, H]."""
        pair = isinstance(self.layers[0], fastrnn.LSTM)
        found = [self.layers[0](rows[:, 0])]  # unbatched
        for layer, call in zip(self.layers, self.calls, strict=True):
            count = call["num_layers"] * (1 + call["bidirectional"])
            state = (h[:count], c[:count]) if pair else h[:count]
            input = rows.transpose(0, 1) if call["batch_first"] else rows
            found.append(layer(input, state if call["state"] else None))
        for cell in self.cells:
            found.append(cell(rows[0], (h[0], c[0]) if pair else h[0]))
        found += [self.cells[0](rows[0]), self.cells[0](rows[0, 0])]
        return tensors(found)


def nodes(path):
    """The file's nodes, those inside others too."""
    pending, found = [onnx.load(path).graph], []
    while pending:
        graph = pending.pop()
        found += graph.node
        pending += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return found


def recurrent(path):
    return [node for node in nodes(path) if node.op_type in ("LSTM", "GRU", "RNN")]


def attribute(node, name):
    (found,) = (onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name)
    return found


def run_everywhere(path, *inputs):
    """The outputs of onnx's reference and of onnxruntime."""
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    feed = dict(zip([i.name for i in proto.graph.input], [x.numpy() for x in inputs], strict=True))
    yield reference.ReferenceEvaluator(proto, new_ops=[Relu]).run(None, feed)
    yield onnxruntime.InferenceSession(str(path)).run(None, feed)


def assert_same(path, model, *inputs):
    training = model.training
    with torch.no_grad():
        expected = tensors(model.eval()(*inputs))
    model.train(training)
    for outputs in run_everywhere(path, *tensors(inputs)):
        assert len(outputs) == len(expected)
        for found, wanted in zip(outputs, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-5, atol=1e-5)


def inputs_of(steps, batch):
    return torch.randn(steps, batch, IN), torch.randn(4, batch, H), torch.randn(4, batch, H)


@pytest.fixture(
    scope="module",
    params=[
        *[(family, every_pair) for family in FAMILIES],
        *[pytest.param((family, every_option), marks=pytest.mark.slow) for family in FAMILIES],
    ],
    ids=lambda param: f"{param[0]}-{param[1].__name__}",
)
def zoo(request, tmp_path_factory):
    """A family, its zoo and the file of it."""
    family, calls = request.param
    torch.manual_seed(0)
    model = Zoo(*FAMILIES[family], calls())
    path = tmp_path_factory.mktemp("onnx") / "zoo.onnx"
    export(model, inputs_of(T, B), path)
    return family, model, path


@pytest.mark.parametrize("sizes", [(T, B), *OTHER_SIZES])
def test_every_option_computes_the_same(zoo, sizes):
    _, model, path = zoo
    assert_same(path, model, *inputs_of(*sizes))


def test_a_layer_is_one_node(zoo):
    family, model, path = zoo
    kind = {"lstm": "LSTM", "gru": "GRU", "gru_reset_before": "GRU"}.get(family, "RNN")
    found = recurrent(path)
    both_ways = sum(call["num_layers"] for call in model.calls if call["bidirectional"])
    one_way = sum(call["num_layers"] for call in model.calls if not call["bidirectional"])
    assert {node.op_type for node in found} == {kind}
    directions = [attribute(node, "direction") for node in found]
    assert directions.count(b"bidirectional") == both_ways
    assert directions.count(b"forward") == one_way + 1 + 4  # unbatched; cells
    assert not {node.op_type for node in nodes(path)} & {"Loop", "Scan", "If"}
    if kind == "GRU":
        before = {attribute(node, "linear_before_reset") for node in found}
        assert before == {int(family == "gru")}


class Words(nn.Module):
    """A word model; its output weights are the embedding's."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.rnn = fastrnn.LSTM(16, 16, 2, dropout=0.5)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(16, 50)
        self.linear.weight = self.embedding.weight

    def forward(self, words, state=None):
        output, state = self.rnn(self.drop(self.embedding(words)), state)
        return self.linear(self.drop(output)), state


def a_text(steps, batch):
    state = torch.randn(2, batch, 16), torch.randn(2, batch, 16)
    return torch.randint(50, (steps, batch)), state


def test_word_model(tmp_path):
    model, path = Words(), tmp_path / "words.onnx"
    names = ["words", "h_0", "c_0"], ["logits", "h_n", "c_n"]
    program = export(model, a_text(T, B), path, input_names=names[0], output_names=names[1])
    assert [node.op_type for node in recurrent(path)] == ["LSTM", "LSTM"]
    assert not {"Dropout", "Split", "Loop"} & {node.op_type for node in nodes(path)}
    for sizes in [(T, B), *OTHER_SIZES]:
        assert_same(path, model, *a_text(*sizes))
    graph = onnx.load(path).graph
    assert ([i.name for i in graph.input], [o.name for o in graph.output]) == names
    assert isinstance(program, torch.onnx.ONNXProgram)
    # W, R and B stand there ready, in ONNX's layout.
    held = {i.name: list(i.dims) for i in graph.initializer}
    for node in recurrent(path):
        assert [held[name] for name in node.input[1:4]] == [[1, 64, 16], [1, 64, 16], [1, 128]]


def test_the_model_is_left_as_it_was(tmp_path):
    model = nn.Sequential(fastrnn.RNN(IN, H, 2, dropout=0.5), nn.Identity())
    model[1].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    forward = fastrnn.RNN.forward
    for rows in (torch.randn(T, B, IN), torch.randn(T, B, IN + 1)):
        with pytest.raises(RuntimeError) if rows.size(2) > IN else nullcontext():
            export(model, rows, tmp_path / "model.onnx")
        assert fastrnn.RNN.forward is forward
        assert [module.training for module in model.modules()] == modes
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_lengths_become_sequence_lens(tmp_path):
    model = fastrnn.GRU(IN, H, 2, bidirectional=True, batch_first=True)
    path = tmp_path / "model.onnx"
    export(model, (torch.randn(3, T, IN), {"lengths": torch.tensor([2, 5, 4])}), path)
    session = onnxruntime.InferenceSession(str(path))  # onnx's reference ignores sequence_lens
    for ends in ([2, 5, 4], [1, 3], [4]):
        rows, lengths = torch.randn(len(ends), max(ends) + 1, IN), torch.tensor(ends)
        found = session.run(None, {"input": rows.numpy(), "lengths": lengths.numpy()})
        for ours, wanted in zip(found, model(rows, lengths=lengths), strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), wanted, rtol=1e-5, atol=1e-5)


def test_computed_weights_hooks_and_subclasses(tmp_path):
    class Doubled(fastrnn.GRU):
        def forward(self, rows):
            return 2 * super().forward(rows)[0]

    model = nn.Sequential(Doubled(IN, H), Doubled(H, H))
    nn.utils.parametrizations.weight_norm(model[0], "weight_hh_l0")
    with torch.no_grad():
        model[0].parametrizations.weight_hh_l0.original0.mul_(3)
    model[1].register_forward_hook(lambda module, args, output: output + 1)
    export(model, torch.randn(T, B, IN), tmp_path / "model.onnx")
    assert_same(tmp_path / "model.onnx", model, torch.randn(7, 2, IN))
    assert len(recurrent(tmp_path / "model.onnx")) == 2


def test_sizes_vary_as_asked(tmp_path):
    model, path = fastrnn.RNN(IN, H), tmp_path / "rnn.onnx"

    def sizes(**options):
        export(model, torch.randn(T, B, IN), path, **options)
        dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
        return [d.dim_param or d.dim_value for d in dims]

    assert sizes(dynamic_shapes={}) == [T, B, IN]
    assert sizes(dynamic_shapes=({0: "steps"},), opset_version=22) == ["steps", B, IN]
    assert onnx.load(path).opset_import[0].version == 22
    with fastrnn.use_backend("reference"):
        steps, batch, size = sizes()
    assert len({steps, batch, B, T}) == 4 and size == IN
    assert_same(path, model, torch.randn(2, 1, IN))
