"""Layer normalisation inside LSTM and GRU: formula, gradients, parameters, refusals."""

import pytest
import torch

import fastrnn
from fastrnn import _library
from fastrnn.cells import CELLS
from fastrnn.regularisers import LayerNorm
from tests.layers import random_layer

T, B, H, I = 4, 3, 6, 5  # noqa: E741 (the letters of fastrnn.cells)


def gains(cell, hidden):
    generator = torch.Generator().manual_seed(7)

    def draw(size):
        values = torch.randn(size, generator=generator, dtype=torch.float64)
        return values.requires_grad_()

    rows = CELLS[cell].gates * hidden
    return LayerNorm(draw(rows), draw(rows), *(draw(hidden) for _ in range(2 * (cell == "lstm"))))


def present(norm):
    return [gain for gain in norm if gain is not None]


def norm_by_hand(x):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + 1e-5).sqrt()


def by_hand(layer, norm):
    x, state, w_ih, w_hh, b_ih, b_hh = layer.present
    h, outputs = state[0], []
    c = state[-1]
    for x_t in x.unflatten(0, (T, B)):
        from_x = norm_by_hand(x_t @ w_ih.T) * norm.ln_ih_weight + b_ih
        from_h = norm_by_hand(h @ w_hh.T) * norm.ln_hh_weight + b_hh
        if layer.cell == "lstm":
            i, f, g, o = (from_x + from_h).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(norm_by_hand(c) * norm.ln_c_weight + norm.ln_c_bias)
        else:
            (x_r, x_z, x_n), (h_r, h_z, h_n) = from_x.chunk(3, 1), from_h.chunk(3, 1)
            z = torch.sigmoid(x_z + h_z)
            h = (1 - z) * torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n) + z * h
        outputs.append(h)
    return torch.cat(outputs), torch.stack((h, c) if layer.cell == "lstm" else (h,))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_formula(cell):
    layer, norm = random_layer(cell, [B] * T, I, H), gains(cell, H)
    found = fastrnn.recurrence(cell, *layer.present, batch_sizes=layer.batch_sizes, layer_norm=norm)
    expected = by_hand(layer, norm)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    leaves = [*layer.present, *present(norm)]
    total, other = (sum(r.square().sum() for r in results) for results in (found, expected))
    gradients = torch.autograd.grad(total, leaves)
    torch.testing.assert_close(gradients, torch.autograd.grad(other, leaves))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gradients_of_first_and_second_order(cell):
    layer, norm = random_layer(cell, [2, 1], 2, 2), gains(cell, 2)
    count = len(layer.present)

    def run(*tensors):
        arguments = layer.with_present(tensors[:count])
        return fastrnn.recurrence(
            cell,
            *arguments[:6],
            batch_sizes=layer.batch_sizes,
            layer_norm=LayerNorm(*tensors[count:]),
        )

    leaves = [*layer.present, *present(norm)]
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_module_has_the_parameters_of_every_layer_and_direction(name):
    module = getattr(fastrnn, name)(
        I, H, 2, bidirectional=True, layer_norm=True, dtype=torch.float64
    )
    plain = dict(getattr(fastrnn, name)(I, H, 2, bidirectional=True).named_parameters())
    rows = (4 if name == "LSTM" else 3) * H
    extra = {"ln_ih_weight": (rows, 1.0), "ln_hh_weight": (rows, 1.0)}
    if name == "LSTM":
        extra |= {"ln_c_weight": (H, 1.0), "ln_c_bias": (H, 0.0)}
    found = dict(module.named_parameters())
    assert len(found) == len(plain) + 4 * len(extra)
    for end in ("l0", "l0_reverse", "l1", "l1_reverse"):
        for kind, (size, value) in extra.items():
            expected = torch.full((size,), value, dtype=torch.float64)
            assert torch.equal(found[f"{kind}_{end}"].detach(), expected)
    # The second layer on its own, so that each gain is known to be read where it belongs.
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape), alpha=1 + number % 3)
    x = torch.randn(T, B, I, dtype=torch.float64)
    output, _ = module(x)
    for layer in range(2):
        sides = []
        for reverse in (False, True):
            end = f"_l{layer}" + "_reverse" * reverse
            weights = [found[k + end] for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            side, _ = fastrnn.recurrence(
                name.lower(),
                x,
                torch.zeros(2 if name == "LSTM" else 1, B, H, dtype=torch.float64),
                *weights,
                reverse=reverse,
                layer_norm=LayerNorm(*(found[k + end] for k in extra)),
            )
            sides.append(side)
        x = torch.cat(sides, dim=-1)
    torch.testing.assert_close(output, x, rtol=0, atol=1e-12)
    assert "layer_norm=True" in repr(module)
    other = getattr(fastrnn, name)(I, H, 2, bidirectional=True, layer_norm=True)
    other.load_state_dict(module.float().state_dict())


@pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")
def test_explain_says_that_native_runs_it_and_why_triton_does_not():
    text = fastrnn.explain(fastrnn.LSTM(I, H, layer_norm=True))
    assert text.startswith("native: runs lstm")
    assert fastrnn.explain(fastrnn.LSTM(I, H, layer_norm=True).half()).startswith("reference:")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fastrnn.RNN(I, H, layer_norm=True), "RNN: layer_norm needs an LSTM, or a GRU"),
        (lambda: fastrnn.GRU(I, H, reset_after=False, layer_norm=True), "GRU: layer_norm needs an"),
        (lambda: fastrnn.LSTM(I, H, proj_size=2, layer_norm=True), "False with proj_size, got .*2"),
    ],
)
def test_modules_that_cannot_have_it(build, message):
    with pytest.raises(ValueError, match=message) as raised:
        build()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("cell", "norm", "message"),
    [
        ("rnn_tanh", LayerNorm(torch.ones(H), torch.ones(H)), r"needs a cell of .*got 'rnn_tanh'"),
        ("gru_reset_before", gains("gru", H), "got 'gru_reset_before'"),
        ("gru", gains("gru", H)._replace(ln_hh_weight=torch.ones(5)), r"= \[18\], got \[5\]"),
        ("lstm", gains("gru", H), r"ln_ih_weight must be \[G\*H\] = \[24\], got \[18\]"),
        ("gru", gains("gru", H)._replace(ln_c_bias=torch.ones(H)), "ln_c_bias must be None for"),
        ("lstm", gains("lstm", H)._replace(ln_c_bias=None), "ln_c_bias must be a tensor for cell"),
        ("gru", LayerNorm(torch.ones(18), torch.ones(18)), "ln_ih_weight must have the input's dt"),
    ],
)
def test_bad_gains(cell, norm, message):
    layer = random_layer(cell, [B] * T, I, H)
    with pytest.raises(ValueError, match=message) as raised:
        fastrnn.recurrence(cell, *layer.present, batch_sizes=layer.batch_sizes, layer_norm=norm)
    assert "\n" not in str(raised.value)


def test_gains_have_a_type():
    layer = random_layer("gru", [B] * T, I, H)
    with pytest.raises(TypeError, match="must be a fastrnn.regularisers.LayerNorm, got bool"):
        fastrnn.recurrence("gru", *layer.present, batch_sizes=layer.batch_sizes, layer_norm=True)
