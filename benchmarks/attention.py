"""Masked attention against torch's function and the plain products: forward, and training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import compare, measured_peak
from fastrnn.functional import masked_attention

# B, heads, L, E; what masks them; dropout.
CASES = [
    ((128, 16, 35, 32), "boolean", 0.0),
    ((4, 8, 512, 64), "boolean", 0.0),
    ((1, 8, 1024, 64), "boolean", 0.0),
    ((1, 8, 1024, 64), "causal", 0.0),
    ((4, 8, 512, 64), "boolean", 0.1),
    ((1, 8, 1024, 64), "boolean", 0.1),
]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, bool, float]


def ours(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, p: float) -> Tensor:
    """This package's."""
    return masked_attention(q, k, v, mask, is_causal=causal, dropout_p=p)


def torchs(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, p: float) -> Tensor:
    """torch's function, which chooses among its own kernels."""
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=p, is_causal=causal)


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, p: float) -> Tensor:
    """Product, softmax, product."""
    scores = q @ k.mT * q.size(-1) ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    if causal:
        scores = scores.masked_fill(
            ~torch.ones_like(scores[0, 0], dtype=torch.bool).tril(), -math.inf
        )
    return F.dropout(scores.softmax(-1), p) @ v


PEERS = {"ours": ours, "sdpa": torchs, "plain": plain}


def gradients(attend: Any, inputs: Inputs, grad: Tensor) -> list[Tensor]:
    """Output and gradients of query, key and value."""
    leaves = [t.detach().requires_grad_() for t in inputs[:3]]
    output = attend(*leaves, *inputs[3:])
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def check(inputs: Inputs, grad: Tensor) -> None:
    """Refuse to time what does not agree; dropout apart, which draws differently."""
    same = (*inputs[:5], 0.0)
    for a, b in zip(gradients(ours, same, grad), gradients(plain, same, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def rows(quick: bool) -> Iterator[dict[str, Any]]:
    """One row per case and mode."""
    torch.manual_seed(0)
    for shape, kind, dropout in CASES[:1] if quick else CASES:
        batch, heads, length, size = shape
        query, key, value, grad = (torch.randn(shape) for _ in range(4))
        mask = torch.rand(batch, 1, length, length) > 0.3
        mask[..., 0] = True
        inputs = (query, key, value, mask if kind == "boolean" else None, kind == "causal", dropout)
        check(inputs, grad)
        floor = 4 * batch * heads * length**2 * size / measured_peak() * 1e-6
        floor = floor / 2 if kind == "causal" else floor
        case = {"B": batch, "heads": heads, "L": length, "E": size, "mask": kind, "drop": dropout}

        def infer(attend: Any, inputs: Inputs = inputs) -> None:
            with torch.no_grad():
                attend(*inputs)

        def train(attend: Any, inputs: Inputs = inputs, grad: Tensor = grad) -> None:
            gradients(attend, inputs, grad)

        for mode, run, passes in (("infer", infer, 1), ("train", train, 3.5)):
            runs = {name: lambda run=run, f=f: run(f) for name, f in PEERS.items()}
            yield compare(case | {"mode": mode}, runs, passes * floor, 9)
