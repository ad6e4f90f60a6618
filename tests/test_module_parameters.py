"""The modules against torch.nn: arguments, parameters, attributes, files."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from module_pairs import CELLS, IN, LAYERS, B, H, T, pair, tensor, tensors
from torch import nn

from fastrnn import modules


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("name", "options"), [*LAYERS, *CELLS])
def test_parameters_and_state_dict(name, options, bias):
    extra = {} if "Cell" in name else {"num_layers": 2, "bidirectional": True}
    theirs, ours = pair(name, IN, H, bias=bias, **options, **extra)
    named = dict(ours.named_parameters())
    assert list(named) == list(dict(theirs.named_parameters()))
    for key, parameter in theirs.named_parameters():
        assert torch.equal(named[key], parameter)  # the same draws of the same seed
    assert repr(ours) == repr(theirs)
    for source, target in ((theirs, ours), (ours, theirs)):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.normal_()
        target.load_state_dict(source.state_dict())
        assert all(torch.equal(v, target.state_dict()[k]) for k, v in source.state_dict().items())
    assert list(vars(ours)["_parameters"]) == list(vars(theirs)["_parameters"])


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
def test_sizes_of_numpy_where_torch_takes_them(name):
    numpy = pytest.importorskip("numpy")
    size = numpy.prod((2, 3))  # as of an observation's shape
    theirs, ours = pair(name, *((size, size) if "Cell" in name else (IN, H, size)))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = tensor(B, ours.input_size) if "Cell" in name else tensor(T, B, IN)
    torch.testing.assert_close(tensors(ours(x)), tensors(theirs(x)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), LAYERS)
def test_layer_attributes(name, options):
    theirs, ours = pair(name, IN, H, 2, bidirectional=True, batch_first=True, **options)
    for key in ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first"):
        assert getattr(ours, key) == getattr(theirs, key)
    for key in ("dropout", "bidirectional", "proj_size"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert repr(ours) == repr(theirs)
    assert ours.flatten_parameters() is None
    flat = list(ours.parameters())
    assert all(a is b for a, b in zip(ours._flat_weights, flat, strict=True))
    assert [len(group) for group in ours.all_weights] == [len(g) for g in theirs.all_weights]
    assert ours.all_weights[3][-1] is flat[-1]
    before = [p.clone() for p in flat]
    ours.reset_parameters()
    assert not any(torch.equal(a, b) for a, b in zip(before, flat, strict=True))


def test_positional_arguments_and_factory():
    ours = modules.RNN(3, 5, 2, "relu", False, True, 0.5, True, "meta", torch.float16)
    theirs = nn.RNN(3, 5, 2, "relu", False, True, 0.5, True, device="meta", dtype=torch.float16)
    assert repr(ours) == repr(theirs)
    assert ours.nonlinearity == "relu" and ours.cell_name == "rnn_relu"
    assert ours.weight_ih_l0.is_meta and ours.weight_ih_l0.dtype == torch.float16
    assert modules.LSTM(3, 5, 2, False, True, 0.5, True, 2, "meta").weight_hr_l1.shape == (2, 5)
    gru = modules.GRU(3, 5, 2, False, True, 0.5, True, "meta", reset_after=False)
    assert gru.cell_name == "gru_reset_before" and "reset_after=False" in repr(gru)
    assert modules.GRUCell(3, 5, False, "meta", torch.float16).bias_ih is None
    assert modules.RNNCell(3, 5, True, "relu", "meta").cell_name == "rnn_relu"


@pytest.mark.parametrize(("name", "options"), [*LAYERS, *CELLS])
def test_copies_and_files(name, options):
    _, ours = pair(name, IN, H, **options)
    x = tensor(B, IN) if "Cell" in name else tensor(T, B, IN)
    expected = tensors(ours(x))
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    loaded = getattr(modules, name)(IN, H, dtype=torch.float64, **options)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), loaded):
        assert all(map(torch.equal, tensors(twin(x)), expected))
        with torch.no_grad():
            next(twin.parameters()).add_(1)
    assert all(map(torch.equal, tensors(ours(x)), expected))


def test_dropout_warning():
    messages = []
    for library in (nn, modules):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            library.GRU(IN, H, dropout=0.5)
            library.GRU(IN, H, 2, dropout=0.5)
        messages.append([(w.category, str(w.message)) for w in caught])
    assert len(messages[0]) == 1 and messages[0] == messages[1]
