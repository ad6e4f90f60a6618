"""Masked attention against torch's function and the plain products: forward, and training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import Case, Work
from fastrnn.functional import masked_attention


class Attended(NamedTuple):
    """What is attended to: sizes B, heads, L, E, of which L may count the queries alone."""

    shape: tuple[int, int, int, int]
    mask: str
    dropout: float = 0.0
    keys: int | None = None
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        name = "x".join(map(str, self.shape)) + f"/{self.mask}"
        name += f"/dropout{self.dropout}" * (self.dropout > 0)
        name += f"/keys{self.keys}" * (self.keys is not None)
        return name + "/bfloat16" * (self.dtype == torch.bfloat16)


CASES = [
    Attended((128, 16, 35, 32), "boolean"),
    Attended((4, 8, 512, 64), "boolean"),
    Attended((1, 8, 1024, 64), "boolean"),
    Attended((1, 8, 1024, 64), "causal"),
    Attended((4, 8, 512, 64), "boolean", 0.1),
    Attended((1, 8, 1024, 64), "boolean", 0.1),
    Attended((4, 16, 1, 64), "boolean", keys=300),
    Attended((32, 16, 35, 64), "boolean", dtype=torch.bfloat16),
    Attended((4, 8, 512, 64), "boolean", dtype=torch.bfloat16),
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
    for i, attended in enumerate(CASES):
        for mode in ("infer", "train"):
            shape, mask, dropout, *_ = attended
            sizes = zip(("B", "heads", "L", "E"), shape, strict=True)
            columns = {"mode": mode, **dict(sizes), "mask": mask, "dropout": dropout}
            build = partial(attention, attended, mode)
            yield Case("attention", f"{mode}/{attended}", build, columns, quick=i == 0)


def gradients(attend: Any, inputs: Inputs, grad: Tensor) -> list[Tensor]:
    """Output and gradients of query, key and value."""
    leaves = [t.detach().requires_grad_() for t in inputs[:3]]
    output = attend(*leaves, *inputs[3:])
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def attention(attended: Attended, mode: str) -> Work:
    """One pass over query, key and value [B, heads, L, E]."""
    (batch, heads, queries, size), kind, dropout, keys, dtype = attended
    keys = keys or queries
    lengths = (queries, keys, keys, queries)
    query, key, value, grad = (torch.randn(batch, heads, n, size, dtype=dtype) for n in lengths)
    mask = torch.rand(batch, 1, queries, keys) > 0.3
    mask[..., 0] = True
    inputs = (query, key, value, mask if kind == "boolean" else None, kind == "causal", dropout)
    rtol, atol = (1e-3, 1e-5) if dtype == torch.float32 else (2**-7, 2**-7)

    def check() -> None:
        same = (*inputs[:5], 0.0)  # dropout apart, which draws differently
        exact = (*(t.float() for t in inputs[:3]), *same[3:])
        known = gradients(plain, exact, grad.float())
        for a, b in zip(gradients(ours, same, grad), known, strict=True):
            torch.testing.assert_close(a.float(), b, rtol=rtol, atol=atol)

    def infer(attend: Any) -> None:
        with torch.no_grad():
            attend(*inputs)

    run = infer if mode == "infer" else partial(gradients, inputs=inputs, grad=grad)
    # Two products forward; five backward, one of them made again. Half of each when causal.
    work = (2 if mode == "infer" else 7) * batch * heads * queries * keys * size
    of_queries, of_keys = (2, 2) if mode == "infer" else (5, 4)
    numbers = of_queries * query.numel() + of_keys * key.numel()
    return Work(
        {name: partial(run, f) for name, f in FUNCTIONS.items()},
        check,
        work // 2 if kind == "causal" else work,
        itemsize=dtype.itemsize,
        bytes=numbers * dtype.itemsize,
    )
