"""Every mistake that torch.nn refuses is refused with its type and its key phrase."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn

from fastrnn import modules

LAYERS, CELLS = ["RNN", "GRU", "LSTM"], ["RNNCell", "GRUCell", "LSTMCell"]
IN, H, T, B = 4, 6, 5, 3
x = torch.randn(T, B, IN)
step = torch.randn(B, IN)
packed = rnn.pack_sequence([torch.randn(3, IN), torch.randn(2, IN)])
unsorted = rnn.pack_sequence([torch.randn(2, IN), torch.randn(3, IN)], enforce_sorted=False)


def hx(name, *shape, **options):
    h = torch.zeros(shape, **options)
    return (h, h) if "LSTM" in name else h


CONSTRUCTION = [
    (LAYERS, (0, H), {}, "input_size must be greater than zero"),
    (LAYERS, (-1, H), {}, "input_size must be greater than zero"),
    (LAYERS, (IN, 0), {}, "hidden_size must be greater than zero"),
    (LAYERS, (IN, H, 0), {}, "num_layers must be greater than zero"),
    (LAYERS, (IN, H, "2"), {}, None),
    (LAYERS, (IN, H, 1.5), {}, None),
    (LAYERS, (3.0, H), {}, "input_size should be of type int, got: float"),
    (LAYERS, (IN, "6"), {}, "hidden_size should be of type int, got: str"),
    (LAYERS, (IN, H), {"bias": 1}, "bias should be of type bool, got: int"),
    (LAYERS, (IN, H), {"batch_first": "True"}, "batch_first should be of type bool, got: str"),
    (LAYERS, (IN, H), {"dropout": -0.1}, r"dropout should be a number in range \[0, 1\]"),
    (LAYERS, (IN, H), {"dropout": 1.5}, r"dropout should be a number in range \[0, 1\]"),
    (LAYERS, (IN, H), {"dropout": True}, r"dropout should be a number in range \[0, 1\]"),
    (LAYERS, (IN, H), {"dropout": "half"}, None),
    (LAYERS, (IN, H), {"dropout": None}, None),
    (LAYERS, (IN, H), {"window": 3}, "unexpected keyword argument 'window'"),
    (["RNN"], (IN, H), {"nonlinearity": "sin"}, "Unknown nonlinearity 'sin'"),
    (["RNN", "GRU"], (IN, H), {"proj_size": 2}, "proj_size argument is only supported for LSTM"),
    (["LSTM"], (IN, H), {"proj_size": H}, "proj_size has to be smaller than hidden_size"),
    (["LSTM"], (IN, H), {"proj_size": -1}, "proj_size should be a positive integer or zero"),
    (CELLS, (IN, -1), {}, "Trying to create tensor with negative dimension"),
    (CELLS, (-1, H), {}, "Trying to create tensor with negative dimension"),
    (CELLS, (3.0, H), {}, None),
]
# Each call takes the module's name and returns the arguments of forward.
FORWARD = [
    (LAYERS, lambda n: (x[:0],), "Expected sequence length to be larger than 0 in RNN"),
    (LAYERS, lambda n: (x[:0, 0],), "Expected sequence length to be larger than 0 in RNN"),
    (["RNN"], lambda n: (x[None],), "RNN: Expected input to be 2D or 3D, got 4D tensor instead"),
    (["GRU", "LSTM"], lambda n: (x[0, 0],), "Expected input to be 2D or 3D, got 1D instead"),
    (LAYERS, lambda n: (x[..., 1:],), r"input.size\(-1\) must be equal to input_size. Expected 4"),
    (LAYERS, lambda n: (x.double(),), "RNN input dtype .* does not match weight dtype .*"),
    (LAYERS, lambda n: (x.long(),), r"Convert input: input.to\(torch.float32\)"),
    (LAYERS, lambda n: (x.to("meta"),), "Input and parameter tensors are not at the same device"),
    (["RNN", "GRU"], lambda n: (x, torch.zeros(1, B, 5)), r"Expected hidden size \(1, 3, 6\), got"),
    (["LSTM"], lambda n: (x, hx(n, 2, B, H)), r"Expected hidden\[0\] size \(1, 3, 6\), got"),
    (["LSTM"], lambda n: (x, (hx("", 1, B, H), hx("", 1, B, 5))), r"Expected hidden\[1\] size"),
    (LAYERS, lambda n: (x, hx(n, B, H)), "For batched 3-D input, hx .*should also be 3-D but got"),
    (LAYERS, lambda n: (x[:, 0], hx(n, 1, 1, H)), "For unbatched 2-D input, hx .*be 2-D but got"),
    (LAYERS, lambda n: (x, hx(n, 1, B, H, dtype=torch.float64)), None),
    (LAYERS, lambda n: (x, hx(n, 1, B, H, device="meta")), "Input and hidden tensors are not at"),
    (["LSTM"], lambda n: (x, torch.zeros(2, B, H)), None),
    (["LSTM"], lambda n: (x, (torch.zeros(1, B, H),) * 3), "lstm expects two hidden states"),
    (["RNN", "GRU"], lambda n: (packed, torch.zeros(1, B, H)), r"Expected hidden size \(1, 2, 6\)"),
    (["LSTM"], lambda n: (packed, hx(n, 1, B, H)), None),
    (LAYERS, lambda n: (unsorted, hx(n, 1, 1, H)), None),
    (["RNN", "GRU"], lambda n: (packed._replace(data=packed.data.double()),), "RNN input dtype"),
    (LAYERS, lambda n: (packed._replace(data=packed.data[:, 1:]),), None),
    (["RNN", "GRU"], lambda n: (packed._replace(data=packed.data[None]),), "input must have 2 dim"),
    (CELLS, lambda n: (x,), "Cell: Expected input to be 1D or 2D, got 3D instead"),
    (CELLS, lambda n: (step[:, 1:],), "input has inconsistent input_size: got 3 expected 4"),
    (CELLS, lambda n: (step.double(),), None),
    (CELLS, lambda n: (step.to("meta"),), None),
    (CELLS, lambda n: (step, hx(n, B, H, dtype=torch.float64)), None),
    (CELLS, lambda n: (step, hx(n, 2, H)), "Input batch size 3 doesn't match hidden0 batch size 2"),
    (CELLS, lambda n: (step, hx(n, H)), "Input batch size 3 doesn't match hidden0 batch size 6"),
    (CELLS, lambda n: (step, hx(n, B, 5)), "hidden0 has inconsistent hidden_size: got 5, expected"),
    (CELLS, lambda n: (step[0], hx(n, 1, H)), None),
    (["RNNCell", "GRUCell"], lambda n: (step, x), "Expected hidden to be 1D or 2D, got 3D instead"),
    (["LSTMCell"], lambda n: (step, (x, x)), r"Expected hx\[0\] to be 1D or 2D, got 3D instead"),
    (["LSTMCell"], lambda n: (step, torch.zeros(B, H)), "must be tuple of Tensors, not Tensor"),
    (["LSTMCell"], lambda n: (step, (torch.zeros(B, H),)), "lstm_cell expects two hidden states"),
]
# What torch.nn answers by accident (an AttributeError deep inside, or no error at all).
OWN = [
    (LAYERS, lambda n: ([1.0],), TypeError, "{}: input must be a Tensor, got list"),
    (CELLS, lambda n: (None,), TypeError, "{}: input must be a Tensor, got NoneType"),
    (LAYERS, lambda n: (x, "zeros"), TypeError, "hx .*must be a .*got str"),
    (["GRU"], lambda n: (x, hx("LSTM", 1, B, H)), TypeError, "hx must be a Tensor, got tuple"),
    (["LSTM"], lambda n: (x, (None, None)), TypeError, r"hx\[0\] must be a Tensor, got NoneType"),
    (LAYERS, lambda n: (unsorted, hx(n, 1, B, H)), RuntimeError, r"Expected hidden.* size"),
]


def spread(rows):
    return [(name, *row[1:]) for row in rows for name in row[0]]


def assert_as_torch(theirs, ours, phrase):
    """Both fail with the same type and phrase, ours on one line."""
    with pytest.raises(Exception, match=phrase) as expected:
        theirs()
    with pytest.raises(expected.type, match=phrase) as got:
        ours()
    assert got.type is expected.type
    assert str(got.value) and "\n" not in str(got.value)


@pytest.mark.parametrize(("name", "args", "options", "phrase"), spread(CONSTRUCTION))
def test_construction(name, args, options, phrase):
    assert_as_torch(
        lambda: getattr(nn, name)(*args, **options),
        lambda: getattr(modules, name)(*args, **options),
        phrase,
    )


@pytest.mark.parametrize(("name", "call", "phrase"), spread(FORWARD))
def test_forward(name, call, phrase):
    theirs, ours = getattr(nn, name)(IN, H), getattr(modules, name)(IN, H)
    assert_as_torch(lambda: theirs(*call(name)), lambda: ours(*call(name)), phrase)


@pytest.mark.parametrize(("name", "call", "error", "phrase"), spread(OWN))
def test_where_torch_has_no_message(name, call, error, phrase):
    with pytest.raises(error, match=phrase.format(name)) as got:
        getattr(modules, name)(IN, H)(*call(name))
    assert "\n" not in str(got.value)


def test_unknown_nonlinearity_of_a_cell_is_refused_at_once():
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: sin"):
        nn.RNNCell(IN, H, nonlinearity="sin")(step)
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: sin"):
        modules.RNNCell(IN, H, nonlinearity="sin")


@pytest.mark.parametrize("name", LAYERS)
def test_a_replaced_weight_of_another_shape_or_dtype(name):
    ours = getattr(modules, name)(IN, H)
    ours.weight_hh_l0 = nn.Parameter(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=re.escape("weight_hh must be [G*H, H]")):
        ours(x)
    ours.weight_hh_l0 = nn.Parameter(torch.zeros(ours.weight_ih_l0.size(0), H).double())
    with pytest.raises(ValueError, match="weight_hh must have the input's dtype torch.float32"):
        ours(x)


@pytest.mark.parametrize("name", LAYERS)
def test_a_missing_weight_is_named(name):
    ours = getattr(modules, name)(IN, H)
    del ours.weight_hh_l0
    with pytest.raises(RuntimeError, match=f"{name}: a weight is missing: .*'weight_hh_l0'"):
        ours(x)


@pytest.mark.parametrize("name", LAYERS)
def test_a_weight_that_is_none_or_sparse(name):
    module = getattr(modules, name)(IN, H)
    module.bias_ih_l0 = None
    with pytest.raises(TypeError, match=r"^recurrence: bias_ih must be a Tensor, got NoneType$"):
        module(x)
    module = getattr(modules, name)(IN, H)
    module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach().to_sparse())
    message = r"^recurrence: weight_hh must be a dense tensor, got torch.sparse_coo$"
    with torch.no_grad(), pytest.raises(TypeError, match=message):
        module(x)


@pytest.mark.parametrize("name", CELLS)
def test_a_sparse_input(name):
    message = "^recurrence: input must be a dense tensor, got torch.sparse_coo$"
    for mode in (torch.no_grad, torch.enable_grad):
        with mode(), pytest.raises(TypeError, match=message):
            getattr(modules, name)(IN, H)(step.to_sparse())
