"""The attention kernels in CUDA C++, run by the emulator, against the definition in float64."""

from __future__ import annotations

import math

import pytest
import torch

from fastrnn import _attention
from tests.attentions import random_case
from tests.device_attention import NAMES, run
from tests.emulator import DTYPES, EmulatorError
from tests.layers import assert_as_close_as_torch

HALVES = (torch.float16, torch.bfloat16)
FLOORS = {d: (64 if d == torch.float64 else 4) * torch.finfo(d).eps for d in DTYPES}
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
    largest = max(t[t.isfinite()].abs().max().item() for t in exact.values() if t.numel())
    for name, ours in found.items():
        values = [t.double().nan_to_num(nan=math.nan, posinf=9.0) for t in (ours, torchs[name], exact[name])]
        assert_as_close_as_torch(name, *values, FLOORS[dtype], largest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_grid(device, size, dtype):
    for options in MASKS.values():
        check(device, random_case(SIZES[size], **options), dtype)
