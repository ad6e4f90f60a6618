"""Random attentions for the tests, and the definition they are held against."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastrnn.regularisers import random_words

# Axes of [B, heads, Lq, Lk] that a mask has; the others are 1.
AXES = {"full": "bhqk", "heads": "bqk", "keys": "bk", "queries": "bq", "bias": "hqk", "one": ""}


@dataclass
class Case:
    """Arguments of `fastrnn::masked_attention`; B, heads, Lq, Lk, E, D in `sizes`."""

    tensors: list[Tensor]
    mask: Tensor | None
    seed: Tensor | None
    is_causal: bool
    dropout_p: float
    scale: float

    @property
    def options(self) -> tuple[bool, float, float]:
        return self.is_causal, self.dropout_p, self.scale

    @property
    def arguments(self) -> tuple[object, ...]:
        return *self.tensors, self.mask, self.seed, *self.options

    @property
    def differentiable(self) -> list[Tensor]:
        """Query, key, value, and the mask where it is added."""
        added = self.mask is not None and self.mask.is_floating_point()
        return [*self.tensors, self.mask] if added else self.tensors

    def to(self, dtype: torch.dtype) -> Case:
        mask = self.mask
        if mask is not None and mask.is_floating_point():
            mask = mask.to(dtype)
        return replace(self, tensors=[t.to(dtype) for t in self.tensors], mask=mask)

    def with_tensors(self, *tensors: Tensor) -> Case:
        mask = tensors[3] if len(tensors) > 3 else self.mask
        return replace(self, tensors=list(tensors[:3]), mask=mask)


def random_case(
    sizes: tuple[int, ...],
    mask: str | None = None,
    additive: bool = False,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Case:
    """A float64 attention; some queries of a boolean mask attend to nothing."""
    batch, heads, queries, keys, size, width = sizes
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    lengths = dict(zip("bhqk", (batch, heads, queries, keys), strict=True))
    values = None
    if mask is not None:
        values = draw(*(n if axis in AXES[mask] else 1 for axis, n in lengths.items()))
        values = values if additive else values > -0.3
        if not additive and "q" in AXES[mask]:
            values[..., queries // 2, :] = False
    return Case(
        [draw(*lead, e) for lead, e in zip(_leads(sizes), (size, size, width), strict=True)],
        values,
        torch.tensor([2**40 + 12345 + seed]) if dropout_p else None,
        is_causal,
        dropout_p,
        1 / math.sqrt(size),
    )


def _leads(sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    batch, heads, queries, keys, _, _ = sizes
    return [(batch, heads, queries), (batch, heads, keys), (batch, heads, keys)]


def kept(case: Case) -> Tensor:
    """Which weights dropout keeps, from the words that the operator names."""
    batch, heads, queries, _ = case.tensors[0].shape
    keys = case.tensors[1].size(2)
    rows = [
        random_words(case.seed, 0, torch.arange(queries), torch.full((queries,), head), keys)
        for head in range(batch * heads)
    ]
    words = torch.stack(rows).view(batch, heads, queries, keys)
    return (words >= round(case.dropout_p * 2**32)).to(case.tensors[0].dtype)


def by_definition(case: Case) -> Tensor:
    """The output, from exponentials and their sums."""
    query, key, value = case.tensors
    scores = torch.einsum("bhqe,bhke->bhqk", query, key) * case.scale
    allowed = torch.ones_like(scores, dtype=torch.bool)
    if case.mask is not None and case.mask.is_floating_point():
        scores = scores + case.mask
    elif case.mask is not None:
        allowed = allowed & case.mask
    if case.is_causal:
        allowed = allowed.tril()
    if scores.size(-1) == 0:
        return torch.zeros_like(query[..., :1]).expand(*query.shape[:-1], value.size(-1))
    most = scores.detach().masked_fill(~allowed, -math.inf).amax(-1, keepdim=True)
    most = most.masked_fill(most == -math.inf, 0)
    exps = (scores - most).masked_fill(~allowed, -math.inf).exp()
    total = exps.sum(-1, keepdim=True)
    weights = exps / total.masked_fill(total == 0, 1)
    if case.seed is not None:
        weights = weights * kept(case) / (1 - case.dropout_p)
    return weights @ value
