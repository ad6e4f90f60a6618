"""Triton attention under additive masks of unusual values."""

from __future__ import annotations

import math

import pytest
import torch

from fastrnn import _kernels
from fastrnn._attention import reference
from tests.test_triton import on_devices

pytestmark = pytest.mark.triton


@on_devices
def test_a_mask_that_is_not_a_number_shows(device):
    query, mask = torch.ones(1, 1, 4, 8, device=device), torch.zeros(1, 1, 4, 4, device=device)
    mask[0, 0, 1, 2] = math.nan
    attention = _kernels.module("attention")
    for is_causal in (False, True):  # by which nobody attends there
        found = attention.masked_attention(query, query, query, mask, None, is_causal, 0.0, 1.0)
        for result in found:
            rows = result.reshape(4, -1).isnan().any(-1)
            assert rows.tolist() == [False, not is_causal, False, False]


@on_devices
@pytest.mark.parametrize("low", [-1e9, torch.finfo(torch.float32).min])
def test_rows_of_large_negative_numbers_are_averages(low, device):
    """Of all values; forward as the reference, whose logsumexp cannot hold the sum either."""
    generator = torch.Generator().manual_seed(0)
    query, key, value, grad = torch.randn(4, 1, 2, 40, 16, generator=generator).to(device)
    mask = torch.zeros(1, 1, 40, 40, device=device)
    mask[..., 3, :] = mask[..., 4, 7:] = mask[..., 5, :] = low
    mask[..., 5, :35] = mask[..., 6, :] = -math.inf
    attention, options = _kernels.module("attention"), (False, 0.0, 0.25)
    args = query, key, value, mask, None
    found = attention.masked_attention(*args, *options)
    for ours, exact in zip(found, reference(*args, *options), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0][:, :, 3], value.mean(2), rtol=1e-5, atol=1e-5)
    for result in attention.masked_attention_backward(grad, *args, *found, *options, True):
        assert result.abs().max() < 100  # weights of 1 at most


@on_devices
def test_weights_are_one_at_most_whatever_logsumexp_is_rounded_to(device):
    one = torch.ones(1, 1, 1, 16, device=device)
    args = one, one, one, torch.full((1, 1, 1, 1), -1e9, device=device), None
    rounded = torch.full((1, 1, 1), -1e9 - 64, device=device)
    backward = _kernels.module("attention").masked_attention_backward
    found = backward(one, *args, 0 * one, rounded, False, 0.0, 1.0, True)
    assert torch.equal(found[2], one) and all(t.isfinite().all() for t in found)
