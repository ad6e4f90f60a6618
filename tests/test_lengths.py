"""`lengths`: each sequence as if it ran alone, and nothing done beyond its end."""

from itertools import product

import pytest
import torch
from module_pairs import tensor, tensors

import fastrnn
from fastrnn.bidirectional import run_both

IN, H, T = 4, 6, 5
LENGTHS = [2, 5, 1, 4]
B = len(LENGTHS)
KINDS = [
    ("RNN", {}),
    ("GRU", {}),
    ("GRU", {"reset_after": False}),
    ("LSTM", {}),
    ("LSTM", {"proj_size": 3}),
    ("LSTM", {"layer_norm": True}),
]


def build(name, **options):
    torch.manual_seed(0)
    return getattr(fastrnn, name)(IN, H, 2, dtype=torch.float64, **options)


def states_of(module, *leading):
    h = tensor(*leading, module.proj_size or H)
    return (h, tensor(*leading, H)) if isinstance(module, fastrnn.LSTM) else h


def each_alone(module, x, hx):
    """Outputs [T, B, ...] with zeros beyond the lengths, and last states, one run at a time."""
    outputs, lasts = [], []
    for b, n in enumerate(LENGTHS):
        first = None
        if hx is not None:
            parts = tuple(s[:, b] for s in tensors(hx))
            first = parts if len(parts) == 2 else parts[0]
        output, last = module(x[:n, b], first)
        outputs.append(torch.cat((output, output.new_zeros(T - n, output.size(1)))))
        lasts.append(tensors(last))
    return [torch.stack(outputs, 1), *(torch.stack(s, 1) for s in zip(*lasts, strict=True))]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("name", "options"), KINDS)
def test_equals_each_sequence_alone(name, options, backend):
    for batch_first, bidirectional, given in product((True, False), repeat=3):
        module = build(name, bidirectional=bidirectional, **options)
        x = tensor(T, B, IN)
        hx = states_of(module, 4 if bidirectional else 2, B) if given else None
        expected = each_alone(module, x, hx)
        module.batch_first = batch_first
        with fastrnn.use_backend(backend):
            rows = x.transpose(0, 1) if batch_first else x
            output, last = module(rows, hx, lengths=torch.tensor(LENGTHS))
            found = [output.transpose(0, 1) if batch_first else output, *tensors(last)]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
            weights = [torch.randn_like(value) for value in expected]
            leaves = [x, *tensors(hx), *module.parameters()]
            gradients = [
                torch.autograd.grad(
                    sum((v * w).sum() for v, w in zip(values, weights, strict=True)), leaves
                )
                for values in (found, expected)
            ]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_nothing_is_done_beyond_the_ends(name, monkeypatch):
    module, rows = build(name, bidirectional=True), []

    def run(cell, input, *arguments):
        rows.append(input.size(0))
        return run_both(cell, input, *arguments)

    monkeypatch.setattr("fastrnn._layers.run_both", run)
    x = tensor(T, B, IN)
    beyond = torch.arange(T).unsqueeze(1) >= torch.tensor(LENGTHS)
    poisoned = x.detach().masked_fill(beyond.unsqueeze(2), float("nan")).requires_grad_()
    output, last = module(poisoned, lengths=LENGTHS)
    expected, expected_last = module(x, lengths=LENGTHS)
    assert rows == [sum(LENGTHS)] * 4  # layers of two calls
    assert torch.equal(output, expected)
    assert all(map(torch.equal, tensors(last), tensors(expected_last)))
    assert not output[beyond].any()
    output.square().sum().backward()
    assert not poisoned.grad[beyond].any() and not poisoned.grad.isnan().any()


def test_lengths_may_be_ints_and_shorter_than_the_input():
    module, x = build("GRU"), tensor(T, B, IN)
    output, last = module(x, lengths=(1, 3, 2, 2))
    expected, expected_last = module(x[:3], lengths=torch.tensor([1, 3, 2, 2]))
    assert torch.equal(output[:3], expected) and not output[3:].any()
    assert torch.equal(last, expected_last)


@pytest.mark.parametrize("batch_first", [True, False])
def test_no_sequences(batch_first):
    module = fastrnn.LSTM(IN, H, batch_first=batch_first)
    x = torch.zeros(0, T, IN) if batch_first else torch.zeros(T, 0, IN)
    output, (h_n, _) = module(x, lengths=[])
    assert output.shape == (*x.shape[:2], H) and h_n.shape == (1, 0, H)


def test_all_of_full_length_changes_nothing():
    module, x = build("LSTM", bidirectional=True), tensor(T, B, IN)
    torch.testing.assert_close(module(x, lengths=[T] * B), module(x), rtol=0, atol=1e-12)


def test_compiles_for_any_lengths():
    module, x = build("LSTM", bidirectional=True), tensor(T, B, IN)
    torch._dynamo.reset()  # what other tests compiled counts as recompilation
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in (LENGTHS, [4, 3, 3, 4], [5, 5, 5, 5]):
            lengths = torch.tensor(lengths)
            found, expected = compiled(x, lengths=lengths), module(x, lengths=lengths)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrong", [0, -1, T + 1])
def test_compiled_layers_check_lengths(wrong):
    module, x = build("LSTM"), tensor(T, B, IN)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    compiled(x, lengths=torch.tensor(LENGTHS))
    with pytest.raises(RuntimeError, match="LSTM: lengths must be from 1 to T, got one"):
        compiled(x, lengths=torch.tensor([wrong, *LENGTHS[1:]]))


def test_lengths_inside_transforms():
    module, x, lengths = build("LSTM"), tensor(2, T, B, IN), torch.tensor(LENGTHS)
    found = torch.vmap(lambda x, n: module(x, lengths=n)[0], (0, None))(x, lengths)
    expected = torch.stack([module(each, lengths=LENGTHS)[0] for each in x])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    message = r"lengths must hold numbers that can be read, .* got \[4\] inside a transform"
    with pytest.raises(ValueError, match=message) as raised:
        torch.vmap(lambda x, n: module(x, lengths=n)[0])(x, lengths.expand(2, -1))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([2, 0, 1, 4], ValueError, "lengths must be from 1 to T = 5, got 0"),
        ([2, 6, 1, 4], ValueError, "lengths must be from 1 to T = 5, got 6"),
        ([2, -1, 1, 4], ValueError, "lengths must be from 1 to T = 5, got -1"),
        ([2, 2**70, 1, 4], ValueError, f"lengths must be from 1 to T = 5, got {2**70}"),
        ([2, 5, 1], ValueError, r"lengths must be CPU int64 \[B\] = \[4\], got torch.int64 \[3\]"),
        (torch.tensor(LENGTHS).int(), ValueError, r"\[B\] = \[4\], got torch.int32 \[4\] on cpu"),
        (torch.ones(4, 1).long(), ValueError, r"\[B\] = \[4\], got torch.int64 \[4, 1\]"),
        (torch.ones(4).long().to("meta"), ValueError, r"got torch.int64 \[4\] on meta"),
        (
            [2.0, 5, 1, 4],
            TypeError,
            r"or a list of ints, got \[2.0, 5, 1, 4\]",
        ),
        ([True] * 4, TypeError, "must be an int64 tensor or a list of ints, got"),
        (5, TypeError, "must be an int64 tensor or a list of ints, got int"),
        (range(1, 5), TypeError, "or a list of ints, got range$"),
    ],
)
def test_bad_lengths(lengths, error, message):
    with pytest.raises(error, match=f"GRU: .*{message}") as raised:
        build("GRU")(tensor(T, B, IN), lengths=lengths)
    assert "\n" not in str(raised.value)


def test_lengths_of_what_has_none():
    packed = torch.nn.utils.rnn.pack_sequence([tensor(3, IN), tensor(2, IN)])
    with pytest.raises(ValueError, match="GRU: lengths must be None for a PackedSequence"):
        build("GRU")(packed, lengths=[3, 2])
    with pytest.raises(ValueError, match="GRU: lengths need a batched input of 3 axes, got 2"):
        build("GRU")(tensor(T, IN), lengths=[T])
