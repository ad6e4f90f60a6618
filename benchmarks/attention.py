"""Masked attention against torch's function and the plain products: forward, and training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import Case, Work
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


FUNCTIONS = {"ours": ours, "sdpa": torchs, "plain": plain}


def cases() -> Iterator[Case]:
    """Every row of this suite."""
    for i, (shape, kind, dropout) in enumerate(CASES):
        for mode in ("infer", "train"):
            label = "x".join(map(str, shape)) + f"/{kind}" + f"/dropout{dropout}" * (dropout > 0)
            sizes = zip(("B", "heads", "L", "E"), shape, strict=True)
            columns = {"mode": mode, **dict(sizes), "mask": kind, "dropout": dropout}
            build = partial(attention, shape, kind, dropout, mode)
            yield Case("attention", f"{mode}/{label}", build, columns, quick=i == 0)


def gradients(attend: Any, inputs: Inputs, grad: Tensor) -> list[Tensor]:
    """Output and gradients of query, key and value."""
    leaves = [t.detach().requires_grad_() for t in inputs[:3]]
    output = attend(*leaves, *inputs[3:])
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def attention(shape: tuple[int, ...], kind: str, dropout: float, mode: str) -> Work:
    """One pass over query, key and value [B, heads, L, E]."""
    batch, heads, length, size = shape
    query, key, value, grad = (torch.randn(shape) for _ in range(4))
    mask = torch.rand(batch, 1, length, length) > 0.3
    mask[..., 0] = True
    inputs = (query, key, value, mask if kind == "boolean" else None, kind == "causal", dropout)

    def check() -> None:
        same = (*inputs[:5], 0.0)  # dropout apart, which draws differently
        for a, b in zip(gradients(ours, same, grad), gradients(plain, same, grad), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)

    def infer(attend: Any) -> None:
        with torch.no_grad():
            attend(*inputs)

    run = infer if mode == "infer" else partial(gradients, inputs=inputs, grad=grad)
    # Two products forward; five backward, one of them made again. Half of each when causal.
    work = (2 if mode == "infer" else 7) * batch * heads * length**2 * size
    tensors = 4 if mode == "infer" else 9
    return Work(
        {name: partial(run, f) for name, f in FUNCTIONS.items()},
        check,
        work // 2 if kind == "causal" else work,
        bytes=tensors * 4 * query.numel(),
    )
