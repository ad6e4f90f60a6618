"""The reference cells against torch.nn and against loops written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastrnn.cells import CELLS, recurrence
from tests.layers import random_layer

T, B, H, I = 5, 3, 4, 6  # noqa: E741 (the letters of fastrnn.cells)


def run_reference(cell: str) -> tuple[list[Tensor], Tensor, tuple[Tensor, ...]]:
    layer = random_layer(cell, [B] * T, I, H)
    x, state, w_ih, w_hh, b_ih, b_hh = layer.present
    x_proj = torch.nn.functional.linear(x, w_ih, b_ih)
    output, state_n, _, _ = recurrence(
        CELLS[cell], x_proj, state.unbind(), w_hh, b_hh, [B] * T, False
    )
    return layer.present, output.unflatten(0, (T, B)), state_n


@pytest.mark.parametrize(
    ("cell", "kind", "options"),
    [
        ("lstm", torch.nn.LSTM, {}),
        ("gru", torch.nn.GRU, {}),
        ("rnn_tanh", torch.nn.RNN, {}),
        ("rnn_relu", torch.nn.RNN, {"nonlinearity": "relu"}),
    ],
)
def test_equals_torch_nn(cell, kind, options):
    (x, state, *weights), output, state_n = run_reference(cell)
    module = kind(I, H, dtype=torch.float64, **options)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    module.load_state_dict(dict(zip(names, weights, strict=True)))
    hx = tuple(s.unsqueeze(0) for s in state)
    expected, expected_n = module(x.unflatten(0, (T, B)), hx if len(hx) == 2 else hx[0])
    expected_n = expected_n if isinstance(expected_n, tuple) else (expected_n,)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    for got, want in zip(state_n, expected_n, strict=True):
        torch.testing.assert_close(got, want.squeeze(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", ["gru", "gru_reset_before"])
def test_both_grus_equal_a_loop_by_hand(cell):
    (x, state, w_ih, w_hh, b_ih, b_hh), output, _ = run_reference(cell)
    h = state[0]
    for t, x_t in enumerate(x.unflatten(0, (T, B))):
        x_r, x_z, x_n = (x_t @ w_ih.T + b_ih).split(H, 1)
        w_r, w_z, w_n = w_hh.split(H)
        b_r, b_z, b_n = b_hh.split(H)
        r = torch.sigmoid(x_r + h @ w_r.T + b_r)
        z = torch.sigmoid(x_z + h @ w_z.T + b_z)
        if cell == "gru":
            n = torch.tanh(x_n + r * (h @ w_n.T + b_n))
        else:
            n = torch.tanh(x_n + (r * h) @ w_n.T + b_n)
        h = (1 - z) * n + z * h
        torch.testing.assert_close(output[t], h, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_table_states_the_shapes(cell):
    layer = random_layer(cell, [3, 2, 2], I, H)
    output, state_n, cells, reserve = torch.ops.fastrnn.recurrence.default(*layer.arguments, True)
    c = CELLS[cell]
    assert output.shape == (7, H)
    assert state_n.shape == (c.states, 3, H)
    assert cells.shape == (c.states - 1, 7, H)
    assert reserve.shape == (7, c.reserve * H)


def test_lstm_of_200_units_with_one_bias_has_320800_parameters():
    layer = random_layer("lstm", [1], 200, 200)
    counted = [t.numel() for t in layer.tensors[2:5]]
    assert sum(counted) == 320_800
