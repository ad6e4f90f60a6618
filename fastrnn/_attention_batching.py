"""The attention operators under `torch.vmap`: samples become rows of one larger batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastrnn.batching import Dims, one_by_one


def _folded(tensor: Tensor, dim: int | None, samples: int, batch: int) -> Tensor:
    """[samples * B, ...], of a tensor [B or 1, ...] that has a samples' axis `dim`, or none."""
    every = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
    return every.expand(samples, batch, *every.shape[2:]).flatten(0, 1)


def _batch(query: Tensor, dim: int | None) -> int:
    return query.size(0) if dim is None else query.movedim(dim, 0).size(1)


def forward(op: Any, info: Any, dims: Dims, *args: Any) -> tuple[Any, Any]:
    """`fastrnn::masked_attention` of several samples."""
    samples = info.batch_size
    seed = args[4]
    if seed is not None:  # each sample drops what it drops alone
        return one_by_one(op, samples, dims, args)
    batch = _batch(args[0], dims[0])
    folded = [
        a if a is None else _folded(a, dim, samples, batch)
        for a, dim in zip(args[:4], dims[:4], strict=True)
    ]
    results = op(*folded, *args[4:])
    return tuple(r.unflatten(0, (samples, batch)) for r in results), (0, 0)


def backward(op: Any, info: Any, dims: Dims, *args: Any) -> tuple[Any, Any]:
    """`fastrnn::masked_attention_backward` of several samples."""
    samples = info.batch_size
    mask, seed, mask_grad = args[4], args[5], args[-1]
    if seed is not None:
        return one_by_one(op, samples, dims, args)
    batch = _batch(args[1], dims[1])
    folded = [
        a if not isinstance(a, Tensor) else _folded(a, dim, samples, batch)
        for a, dim in zip(args, dims, strict=True)
    ]
    *grads, grad_mask = op(*folded)
    grads = [g.unflatten(0, (samples, batch)) for g in grads]
    if not mask_grad:
        return (*grads, grad_mask), (0, 0, 0, None)
    grad_mask = grad_mask.unflatten(0, (samples, batch))
    if _batch(mask, dims[4]) != batch:  # one mask for the sample's whole batch
        grad_mask = grad_mask.sum(1, keepdim=True)
    return (*grads, grad_mask), (0, 0, 0, 0)
