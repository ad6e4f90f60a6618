"""`return_cells`: the c of every step, however the input is laid out."""

import pytest
import torch
from module_pairs import IN, B, H, T, tensor
from torch import nn
from torch.nn.utils import rnn

import fastrnn

LENGTHS = [2, 5, 4]


def by_hand(module, x):
    """c of one sequence [T, I] in both directions, as the state of nn.LSTM after each step."""
    sides = []
    for end in ("", "_reverse"):
        cell = nn.LSTM(IN, H, dtype=torch.float64)
        weights = module.state_dict()
        cell.load_state_dict({name: weights[name + end] for name in cell.state_dict()})
        state, found = None, [None] * len(x)
        for t in reversed(range(len(x))) if end else range(len(x)):
            _, state = cell(x[t : t + 1], state)
            found[t] = state[1]
        sides.append(torch.cat(found))
    return torch.cat(sides, -1)


def call(module, form, x):
    """Output and c of x [T, B, I], both [T, B, 2*H]."""
    if form == "batch first":
        module.batch_first = True
        output, _, cells = module(x.transpose(0, 1), return_cells=True)
        return output.transpose(0, 1), cells.transpose(0, 1)
    if form == "packed":
        packed = rnn.pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
        output, _, cells = module(packed, return_cells=True)
        return rnn.pad_packed_sequence(output)[0], rnn.pad_packed_sequence(cells)[0]
    lengths = LENGTHS if form == "lengths" else None
    return module(x, return_cells=True, lengths=lengths)[::2]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("form", ["padded", "batch first", "packed", "lengths"])
def test_equals_the_states_of_single_steps(form, backend):
    module, x = fastrnn.LSTM(IN, H, bidirectional=True, dtype=torch.float64), tensor(T, B, IN)
    lengths = LENGTHS if form in ("packed", "lengths") else [T] * B
    with fastrnn.use_backend(backend):
        output, cells = call(module, form, x)
        assert output.shape == cells.shape
        for b, n in enumerate(lengths):
            expected = by_hand(module, x[:n, b])
            torch.testing.assert_close(cells[:n, b], expected, rtol=0, atol=1e-12)
            assert not cells[n:, b].any()
        with torch.no_grad():
            assert torch.equal(call(module, form, x)[1], cells)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gradients_and_the_last_layer(backend):
    module = fastrnn.LSTM(IN, H, 2, dtype=torch.float64)
    top = fastrnn.LSTM(H, H, dtype=torch.float64)
    weights = module.state_dict()
    top.load_state_dict({name: weights[name[:-1] + "1"] for name in top.state_dict()})
    lower = fastrnn.LSTM(IN, H, dtype=torch.float64)
    lower.load_state_dict({name: weights[name] for name in lower.state_dict()})
    x = tensor(T, IN)  # unbatched
    with fastrnn.use_backend(backend):
        cells = module(x, return_cells=True)[2]
        assert cells.shape == (T, H)
        torch.testing.assert_close(
            cells, top(lower(x)[0], return_cells=True)[2], rtol=0, atol=1e-12
        )
        assert torch.autograd.gradcheck(lambda x: module(x, return_cells=True)[2], tensor(3, IN))
        assert torch.autograd.gradgradcheck(lambda x: lower(x, return_cells=True)[2], tensor(2, IN))


def test_needs_a_c():
    with pytest.raises(ValueError, match="GRU: return_cells needs a cell with a c, got 'gru'"):
        fastrnn.GRU(IN, H)(torch.zeros(T, B, IN), return_cells=True)
    with pytest.raises(ValueError, match="recurrence: return_cells needs a cell of two states"):
        x, state = torch.zeros(T, B, H), torch.zeros(1, B, H)
        fastrnn.recurrence("rnn_tanh", x, state, None, torch.zeros(H, H), return_cells=True)
