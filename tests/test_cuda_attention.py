"""The attention kernels in CUDA C++, run by the emulator, against the definition in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fastrnn import _attention
from tests.attentions import AXES, random_case
from tests.device_attention import NAMES, SHARED, run
from tests.emulator import DTYPES, EmulatorError
from tests.layers import assert_as_close_as_torch

FLOORS = {
    torch.float32: 1e-6,
    torch.float64: 2e-14,
    torch.float16: 4 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps,
}
# B, heads, Lq, Lk, E, D: odd sizes, the seeds' own, several blocks and steps, one of each.
SIZES = {
    "odd": (2, 2, 5, 7, 8, 6),
    "words": (1, 2, 35, 35, 32, 32),
    "long": (1, 1, 70, 140, 40, 48),
    "one": (1, 1, 3, 1, 1, 1),
}
MASKS = {
    "plain": {},
    "causal": {"is_causal": True},
    "boolean": {"mask": "full", "dropout_p": 0.3},
    "padding": {"mask": "keys", "is_causal": True},
    "added": {"mask": "full", "additive": True, "is_causal": True, "dropout_p": 0.2},
}


def by_reference(case, grad, dtype):
    """Results and gradients of `_attention.reference` in a dtype."""
    case = case.to(dtype)
    leaves = [t.detach().clone().requires_grad_() for t in case.differentiable]
    output, logsumexp = _attention.reference(*case.with_tensors(*leaves).arguments)
    grads = torch.autograd.grad(output, leaves, grad.to(dtype))
    return dict(zip(NAMES, (output.detach(), logsumexp.detach(), *grads), strict=False))


def check(device, case, dtype, **options):
    generator = torch.Generator().manual_seed(1)
    shape = (*case.tensors[0].shape[:3], case.tensors[2].size(3))
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    exact, torchs = by_reference(case, grad, torch.float64), by_reference(case, grad, dtype)
    found = run(device, case, grad, dtype, **options)
    assert set(found) == set(exact)
    for results in (exact, torchs, found):  # rows that attend to nothing have a logsumexp of inf
        for name, tensor in results.items():
            results[name] = tensor.double().masked_fill(tensor == math.inf, 9.0)
    largest = max(t.abs().max().item() for t in exact.values() if t.numel())
    for name, ours in found.items():
        assert_as_close_as_torch(name, ours, torchs[name], exact[name], FLOORS[dtype], largest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_grid(device, size, dtype):
    for options in MASKS.values():
        check(device, random_case(SIZES[size], **options), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_heads_within_the_least_shared_memory(device, dtype):
    options = {"shared_limit": 99 << 10}  # of sm_120
    check(device, random_case((1, 1, 18, 37, 130, 70), "full"), dtype, **options)
    check(device, random_case((1, 1, 5, 9, 256, 256), "bias", True), dtype, **options)
    with pytest.raises(EmulatorError, match="launch: error 1"):
        check(device, random_case((1, 1, 5, 9, 256, 256)), dtype, shared_limit=16 << 10)


@pytest.mark.parametrize("axes", AXES)
def test_gradient_of_a_broadcast_mask(device, axes):
    for dtype in (torch.float32, torch.bfloat16):
        case = random_case((2, 2, 19, 40, 8, 8), axes, True, dropout_p=0.1)
        check(device, case, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [0.5, -0.5, 0.0, 1e-3])
def test_scores_that_grow(device, dtype, scale):
    """From step to step and far beyond the first, or, by their scale, the other way."""
    case = replace(random_case((1, 2, 20, 200, 16, 16), "full"), scale=scale)
    query, key, _ = case.tensors
    query.abs_(), key.mul_(torch.linspace(0, 2, 200)[:, None])
    check(device, case, dtype)


def test_layouts(device):
    case = random_case((2, 3, 9, 20, 16, 16), "full", is_causal=True)
    for options in ({"misalign": 1}, {"heads_inside": True}, {"gap": 3}):
        for dtype in (torch.float16, torch.float32):
            check(device, case, dtype, **options)


def test_rows_and_lengths_of_nothing(device):
    nothing = random_case((1, 2, 18, 33, 8, 8), "keys")
    nothing.mask[:] = False
    for case in (nothing, random_case((1, 1, 3, 0, 8, 8)), random_case((1, 1, 0, 3, 8, 8))):
        check(device, case, torch.float16)
    minus = random_case((1, 1, 18, 33, 8, 8), "full", additive=True)
    minus.mask[..., 3:9, :] = -math.inf
    check(device, minus, torch.float16)


@pytest.mark.parametrize("low", [-1e9, -3e9, torch.finfo(torch.bfloat16).min])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_large_negative_numbers_are_averages(device, dtype, low):
    """Of all values; their logsumexp cannot hold the sum of the weights, which are 1 at most."""
    case = random_case((1, 1, 18, 40, 16, 16), "full", additive=True).to(dtype)
    case.mask[..., 3, :] = case.mask[..., 4, 7:] = case.mask[..., 5, :] = low
    case.mask[..., 5, :35] = -math.inf
    found = run(device, case, torch.ones(1, 1, 18, 16), dtype)
    value = case.tensors[2].float()
    for row, first in ((3, 0), (5, 35)):
        average = value[..., first:, :].mean(2)
        found_row = found["output"][:, :, row].float()
        torch.testing.assert_close(found_row, average, rtol=0, atol=torch.finfo(dtype).eps)
    for result in found.values():
        assert result.isfinite().all()
        assert result.abs().max() < 100 or result is found["logsumexp"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_emptied_tiles_are_not_touched(device, dtype):
    """What nobody attends to may even be NaN."""
    case = random_case((1, 1, 40, 130, 16, 16), "full")
    case.mask[..., :64] = False
    expected = run(device, case, torch.ones(1, 1, 40, 16), dtype)
    for tensor in case.tensors[1:]:
        tensor[..., :64, :] = math.nan
    found = run(device, case, torch.ones(1, 1, 40, 16), dtype)
    assert torch.equal(found["output"], expected["output"])
    assert torch.equal(found["grad_query"], expected["grad_query"])
    assert not found["output"].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_any_order_of_threads(device, dtype):
    case = random_case((1, 2, 35, 70, 16, 8), "bias", True, dropout_p=0.2)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(1, 2, 35, 8, generator=generator)
    found = []
    for seed in range(5):
        device.clear()
        device.seed(seed)
        found.append({n: t.clone() for n, t in run(device, case, grad, dtype).items()})
    assert all(torch.equal(t, found[0][n]) for other in found for n, t in other.items())


def test_every_barrier_is_missed(device):
    """With any one of them taken out, the emulator finds unordered accesses."""

    def attend():
        case = random_case((2, 1, 40, 140, 8, 8), "bias", True)
        for limit in (SHARED, 14 << 10):  # room for two steps, and for one
            run(device, case, torch.ones(2, 1, 40, 8), torch.bfloat16, shared_limit=limit)

    attend()
    sites = device.sites()
    kinds = {site.split(" ", 1)[1] for site in sites}
    assert kinds == {"__syncthreads", "block_any", "wait_copies"}
    for site in sites:
        device.clear()
        device.remove(site)
        with pytest.raises(EmulatorError, match="race|never written|a block that ends"):
            attend()
