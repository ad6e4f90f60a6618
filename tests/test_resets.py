"""`resets`: the same as splitting the sequences there."""

import pytest
import torch
from module_pairs import tensor, tensors
from torch.nn.utils import rnn

import fastrnn
from fastrnn.cells import CELLS
from tests.layers import random_layer

IN, H, T, B = 4, 6, 7, 3
RESETS = torch.zeros(T, B, dtype=torch.bool)
for _t, _b in ((0, 0), (3, 0), (4, 0), (6, 1), (2, 2)):
    RESETS[_t, _b] = True
KINDS = [("RNN", {}), ("GRU", {}), ("LSTM", {}), ("LSTM", {"proj_size": 3})]


def pieces(b, length):
    """The ranges of steps that a sequence is split into."""
    starts = [0, *(t for t in range(1, length) if RESETS[t, b]), length]
    return list(zip(starts[:-1], starts[1:], strict=True))


def split(cell, layer, lengths, reverse):
    """Outputs per sequence and last states, each piece run on its own."""
    x, state, *weights = layer.tensors[:6]
    padded, outputs, lasts = (
        rnn.pad_packed_sequence(rnn.PackedSequence(x, layer.batch_sizes))[0],
        [],
        [],
    )
    for b, length in enumerate(lengths):
        first, found = state[:, b : b + 1], {}
        ranges = pieces(b, length)
        for number, (start, end) in enumerate(reversed(ranges) if reverse else ranges):
            begins = RESETS[end - 1 if reverse else start, b] if number == 0 else True
            first = torch.zeros_like(first) if begins else first
            rows = padded[start:end, b : b + 1]
            output, first = fastrnn.recurrence(cell, rows, first, *weights, reverse=reverse)
            found[start] = output.squeeze(1)
        outputs.append(torch.cat([found[start] for start in sorted(found)]))
        lasts.append(first)
    return outputs, torch.cat(lasts, 1)


@pytest.mark.parametrize("cell", CELLS)
def test_equals_splitting_the_sequences(cell):
    lengths = [7, 7, 4]
    sizes = [sum(n > t for n in lengths) for t in range(T)]
    layer = random_layer(cell, sizes, IN, H)
    marks = torch.cat([RESETS[t, :n] for t, n in enumerate(sizes)])
    output, state_n = fastrnn.recurrence(
        cell, *layer.tensors[:6], batch_sizes=layer.batch_sizes, resets=marks
    )
    outputs, expected_n = split(cell, layer, lengths, False)
    found = rnn.pad_packed_sequence(rnn.PackedSequence(output, layer.batch_sizes))[0]
    for b, expected in enumerate(outputs):
        torch.testing.assert_close(found[: lengths[b], b], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(state_n, expected_n, rtol=0, atol=1e-12)
    totals = [
        sum(r.square().sum() for r in results)
        for results in ((output, state_n), (*outputs, expected_n))
    ]
    gradients = [torch.autograd.grad(total, layer.present) for total in totals]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_first_and_second_order(cell):
    layer = random_layer(cell, [2, 2, 1], 2, 2)
    marks = torch.tensor([False, True, True, False, False])

    def run(*tensors):
        arguments = layer.with_present(tensors)
        return fastrnn.recurrence(
            cell, *arguments[:6], batch_sizes=layer.batch_sizes, resets=marks, reverse=True
        )

    assert torch.autograd.gradcheck(run, layer.present)
    assert torch.autograd.gradgradcheck(run, layer.present)


def test_the_function_resets_before_the_step_in_the_order_of_running():
    layer = random_layer("gru", [1] * T, IN, H)
    x, state, *weights = layer.tensors[:6]
    x = x.unsqueeze(1)
    marks = torch.zeros(T, 1, dtype=torch.bool)
    marks[T - 1] = True
    output, _ = fastrnn.recurrence("gru", x, state, *weights, resets=marks, reverse=True)
    zeros = torch.zeros_like(state)
    expected, _ = fastrnn.recurrence("gru", x, zeros, *weights, reverse=True)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


def module_pieces(module, x, lengths):
    """A module's output per sequence when each piece is a call of its own."""
    return [
        torch.cat([module(x[start:end, b])[0] for start, end in pieces(b, length)])
        for b, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("form", ["padded", "batch first", "lengths", "packed", "unsorted"])
@pytest.mark.parametrize(("name", "options"), KINDS)
def test_modules_split_in_both_directions(name, options, form):
    # One layer: a state that begins at zero is what a piece of its own has.
    module = getattr(fastrnn, name)(IN, H, bidirectional=True, dtype=torch.float64, **options)
    x, lengths = tensor(T, B, IN), [T] * B
    if form == "padded":
        found = module(x, resets=RESETS)[0]
    elif form == "batch first":
        module.batch_first = True
        found = module(x.transpose(0, 1), resets=RESETS.T)[0].transpose(0, 1)
        module.batch_first = False
    elif form == "lengths":
        lengths = [4, 7, 5]
        found = module(x, resets=RESETS, lengths=lengths)[0]
    else:
        lengths = [7, 7, 4] if form == "packed" else [4, 7, 5]
        pack = [
            rnn.pack_padded_sequence(value, lengths, enforce_sorted=form == "packed")
            for value in (x, RESETS)
        ]
        found = rnn.pad_packed_sequence(module(pack[0], resets=pack[1].data)[0])[0]
    expected = module_pieces(module, x, lengths)
    for b, piece in enumerate(expected):
        torch.testing.assert_close(found[: lengths[b], b], piece, rtol=0, atol=1e-12)
    gradients = [
        torch.autograd.grad(sum(v.square().sum() for v in values), [x, *module.parameters()])
        for values in ([found], expected)
    ]
    torch.testing.assert_close(*gradients)


def test_unbatched_and_stacked():
    module = fastrnn.LSTM(IN, H, 2, dtype=torch.float64)
    x, marks = tensor(T, IN), RESETS[:, 2]
    output, last = module(x, resets=marks)
    first, second = module(x[:2]), module(x[2:])
    torch.testing.assert_close(output, torch.cat((first[0], second[0])), rtol=0, atol=1e-12)
    torch.testing.assert_close(tensors(last), tensors(second[1]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("resets", "message"),
    [
        (RESETS[1:], r"resets must be torch.bool \[7, 3\].*, got torch.bool \[6, 3\]"),
        (RESETS.T, r"resets must be torch.bool \[7, 3\].*, got torch.bool \[3, 7\]"),
        (RESETS.float(), r"resets must be torch.bool \[7, 3\].*, got torch.float32 \[7, 3\]"),
        (RESETS.to("meta"), "resets must be on the input's device cpu, got meta"),
    ],
)
def test_bad_resets(resets, message):
    x = torch.zeros(T, B, IN)
    with pytest.raises(ValueError, match=f"GRU: {message}"):
        fastrnn.GRU(IN, H)(x, resets=resets)
    weights = [torch.zeros(3 * H, IN), torch.zeros(3 * H, H)]
    message = message.replace(r"[7, 3\]", r"[T, B\] = \[7, 3\]", 1)
    with pytest.raises(ValueError, match=f"recurrence: {message}") as raised:
        fastrnn.recurrence("gru", x, torch.zeros(1, B, H), *weights, resets=resets)
    assert "\n" not in str(raised.value)
    with pytest.raises(TypeError, match="GRU: resets must be a Tensor, got list"):
        fastrnn.GRU(IN, H)(x, resets=resets.tolist() if resets.device.type == "cpu" else [])
