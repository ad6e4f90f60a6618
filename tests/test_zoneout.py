"""Zoneout: its formula, its limits, where its masks are the same."""

import pytest
import torch
from torch.func import vmap
from torch.nn.utils import rnn

import fastrnn
from fastrnn.cells import CELLS
from fastrnn.regularisers import random_words
from tests.layers import random_layer

T, B, H, I = 4, 3, 6, 5  # noqa: E741 (the letters of fastrnn.cells)
SEED = torch.tensor(-(2**62) + 12345)


def kept(state, p, steps, batch):
    """Masks [T, B, H] from the documented function of seed, state, step, sequence and unit."""
    t, b = torch.meshgrid(torch.arange(steps), torch.arange(batch), indexing="ij")
    found = random_words(SEED, state, t.flatten(), b.flatten(), H)
    return (found < int(p * 2**32)).view(steps, batch, H)


def call(layer, **options):
    return fastrnn.recurrence(
        layer.cell,
        *layer.tensors[:6],
        batch_sizes=layer.batch_sizes,
        reverse=layer.reverse,
        **options,
    )


def by_hand(layer, rates, training):
    """The recurrence step by step, with s = m * s_prev + (1 - m) * s_new."""
    x, state, w_ih, w_hh, b_ih, b_hh = layer.tensors[:6]
    steps = len(layer.batch_sizes)
    masks = [kept(s, p, steps, B).double() if training else p for s, p in enumerate(rates)]
    states, outputs = list(state), [None] * steps
    for t in reversed(range(steps)) if layer.reverse else range(steps):
        x_t = x.unflatten(0, (steps, B))[t] @ w_ih.T + b_ih
        if layer.cell == "lstm":
            i, f, g, o = (x_t + states[0] @ w_hh.T + b_hh).chunk(4, 1)
            c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
            new = [torch.sigmoid(o) * torch.tanh(c), c]
        else:
            h = states[0] @ w_hh.T + b_hh
            r, z = (
                torch.sigmoid(x_t[:, k * H : k * H + H] + h[:, k * H : k * H + H]) for k in (0, 1)
            )
            n = torch.tanh(x_t[:, 2 * H :] + r * h[:, 2 * H :])
            new = [(1 - z) * n + z * states[0]]
        for s, m in enumerate(masks):
            m = m[t] if training else m
            states[s] = m * states[s] + (1 - m) * new[s]
        outputs[t] = states[0]
    return torch.cat(outputs), torch.stack(states)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize(("cell", "rates"), [("lstm", (0.25, 0.5)), ("gru", (0.25,))])
def test_formula(cell, rates, reverse, training):
    layer = random_layer(cell, [B] * T, I, H, reverse=reverse)
    seed = SEED if training else None
    found = call(layer, zoneout=rates if cell == "lstm" else rates[0], seed=seed)
    expected = by_hand(layer, rates, training)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    total, other = (sum(r.square().sum() for r in results) for results in (found, expected))
    gradients = torch.autograd.grad(total, layer.present)
    torch.testing.assert_close(gradients, torch.autograd.grad(other, layer.present))


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_first_and_second_order(cell):
    layer = random_layer(cell, [2, 2, 1], 2, 2, seed=3)
    for seed in (SEED, None):

        def run(*tensors, seed=seed):
            arguments = layer.with_present(tensors)
            return fastrnn.recurrence(
                cell, *arguments[:6], batch_sizes=layer.batch_sizes, zoneout=0.4, seed=seed
            )

        assert torch.autograd.gradcheck(run, layer.present)
        assert torch.autograd.gradgradcheck(run, layer.present)


@pytest.mark.parametrize("cell", CELLS)
def test_limits(cell):
    layer = random_layer(cell, [B] * T, I, H)
    states = CELLS[cell].states
    with fastrnn.use_backend("reference"):
        plain = call(layer)
        for seed in (SEED, None):
            never = call(layer, zoneout=(0.0,) * states, seed=seed)
            assert all(map(torch.equal, plain, never))
            output, state_n = call(layer, zoneout=(1.0,) * states, seed=seed)
            assert torch.equal(state_n, layer.tensors[1])
            assert torch.equal(output.view(T, B, H), state_n[0].expand(T, B, H))


def test_one_number_leaves_the_cell_state_alone():
    layer = random_layer("lstm", [B] * T, I, H)
    for seed in (SEED, None):
        one = call(layer, zoneout=0.3, seed=seed)
        assert all(map(torch.equal, one, call(layer, zoneout=(0.3, 0.0), seed=seed)))


def test_evaluation_is_the_expectation():
    batch, p = 20_000, 0.3
    layer = random_layer("gru", [1], I, H)
    x, state, *weights = (t.detach() for t in layer.tensors)
    # One step is linear in the mask.
    many = (x.expand(1, batch, I), state.expand(1, batch, H), *weights)
    drawn, _ = fastrnn.recurrence("gru", *many, zoneout=p, seed=SEED)
    expected, _ = fastrnn.recurrence("gru", *many, zoneout=p)
    spread = drawn[0].std(0)
    error = (drawn[0].mean(0) - expected[0, 0]).abs()
    assert (error < 5 * spread / batch**0.5).all()
    share = (drawn[0] == state[0]).double().mean(0)  # of sequences whose unit kept its value
    assert ((share - p).abs() < 5 * (p * (1 - p) / batch) ** 0.5).all()


def test_masks_follow_the_sequence_wherever_it_is_packed():
    lengths = [2, 4, 3]
    module = fastrnn.LSTM(I, H, 2, bidirectional=True, zoneout=(0.3, 0.4), dtype=torch.float64)
    x = torch.randn(4, 3, I, dtype=torch.float64)

    def run(input, **options):
        torch.manual_seed(5)
        return module(input, **options)

    by_length, states = run(x, lengths=lengths)
    packed, packed_states = run(rnn.pack_padded_sequence(x, lengths, enforce_sorted=False))
    torch.testing.assert_close(rnn.pad_packed_sequence(packed)[0], by_length)
    torch.testing.assert_close(packed_states, states)
    # The first layer's forward direction does not know what follows.
    module = fastrnn.LSTM(I, H, zoneout=(0.3, 0.4), dtype=torch.float64)
    whole, short = run(x)[0], run(x, lengths=lengths)[0]
    for b, n in enumerate(lengths):
        torch.testing.assert_close(short[:n, b], whole[:n, b], rtol=0, atol=1e-12)


def test_module_draws_anew_in_training_only():
    module, x = fastrnn.GRU(I, H, zoneout=0.5), torch.randn(T, B, I)
    torch.manual_seed(1)
    first, second = module(x)[0], module(x)[0]
    torch.manual_seed(1)
    assert torch.equal(module(x)[0], first) and not torch.equal(first, second)
    module.eval()
    state = torch.get_rng_state()
    assert torch.equal(module(x)[0], module(x)[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_under_vmap_each_sample_has_its_own_masks_or_all_the_same():
    layer = random_layer("rnn_tanh", [1] * T, I, H)
    x = layer.tensors[0].unsqueeze(1)
    seeds = torch.tensor([3, 3, 8])

    def run(seed):
        return fastrnn.recurrence("rnn_tanh", x, *layer.tensors[1:], zoneout=0.5, seed=seed)[0]

    found = vmap(run)(seeds)
    for b, seed in enumerate(seeds):
        torch.testing.assert_close(found[b], run(seed), rtol=0, atol=1e-12)
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"zoneout": 1.5}, ValueError, r"zoneout must be in \[0, 1\], got 1.5"),
        ({"zoneout": (0.1, -0.1)}, ValueError, r"zoneout must be in \[0, 1\], got -0.1"),
        ({"zoneout": float("nan")}, ValueError, r"zoneout must be in \[0, 1\], got nan"),
        ({"zoneout": "half"}, TypeError, "zoneout must be a number, got str"),
        ({"zoneout": (0.1,) * 3}, ValueError, r"zoneout must be a probability, or S = 2 of"),
    ],
)
def test_bad_probabilities(options, error, message):
    layer = random_layer("lstm", [B] * T, I, H)
    with pytest.raises(error, match=f"recurrence: {message}") as raised:
        call(layer, **options)
    assert "\n" not in str(raised.value)
    with pytest.raises(error, match=f"LSTM: {message}"):
        fastrnn.LSTM(I, H, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": torch.tensor(0.5)}, "seed must be int64 with one value, got torch.float"),
        ({"seed": torch.tensor([1, 2])}, r"seed must be int64 with one .*, got torch.int64 \[2\]"),
        ({"seed": 3}, "seed must be int64 with one value, got 3"),
        ({"sequences": torch.arange(2)}, r"sequences must be int64 \[B\] = \[3\], got"),
        ({"seed": torch.tensor(1, device="meta")}, "seed must be on the input's device cpu"),
    ],
)
def test_bad_seeds(options, message):
    layer = random_layer("gru", [B] * T, I, H)
    with pytest.raises(ValueError, match=f"recurrence: {message}"):
        call(layer, zoneout=0.5, **options)
