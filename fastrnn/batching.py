"""The recurrence operators under `torch.vmap`: samples become sequences of one larger batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Dims = tuple[int | None, ...]
# Places in the operators' arguments.
_WEIGHTS = (2, 3, 4, 5, 6, 7)
_ROWS_FROM = 8  # batch_sizes, resets, seed, sequences, zoneout
_ROWS_TO = _ROWS_FROM + 5


def _folded(tensor: Tensor | None, dim: int | None, at: int, samples: int) -> Tensor | None:
    """`tensor` with the samples' axis `dim` (None: the same for all) merged into the axis `at`.

    A row, or a sequence, of every sample comes before the next one, so that a step's rows stay
    together and batch sizes do not increase.
    """
    if tensor is None:
        return None
    if dim is None:
        tensor = tensor.unsqueeze(at + 1)
        shape = list(tensor.shape)
        shape[at + 1] = samples
        tensor = tensor.expand(shape)
    else:
        tensor = tensor.movedim(dim, at + 1)
    return tensor.flatten(at, at + 1)


def _unfolded(tensor: Tensor, at: int, samples: int) -> Tensor:
    shape = (*tensor.shape[:at], tensor.size(at) // samples, samples, *tensor.shape[at + 1 :])
    return tensor.reshape(shape)


def _batch(state: Tensor, dim: int | None) -> int:
    """B of states [S, B, H] that have a samples' axis."""
    return state.size(1 if dim is None or dim > 1 else 2)


def _folded_rows(dims: Dims, rows: tuple[Any, ...], batch: int, samples: int) -> tuple[Any, ...]:
    """`batch_sizes` and what follows it, for the larger batch."""
    batch_sizes, resets, seed, sequences, zoneout = rows
    if sequences is None and seed is not None:  # the masks that the samples have one by one
        sequences = torch.arange(batch, device=seed.device)
    return (
        batch_sizes * samples,
        _folded(resets, dims[1], 0, samples),
        seed,
        _folded(sequences, dims[3], 0, samples),
        zoneout,
    )


def one_by_one(op: Any, samples: int, dims: Dims, args: tuple[Any, ...]) -> tuple[Any, Any]:
    """An operator under vmap as a loop over the samples."""

    def of_sample(v: int) -> tuple[Any, ...]:
        pairs = zip(args, dims, strict=True)
        return tuple(a if not isinstance(d, int) else a.select(d, v) for a, d in pairs)

    every = [op(*of_sample(v)) for v in range(samples)]
    results = tuple(torch.stack(each) for each in zip(*every, strict=True))
    return results, (0,) * len(results)


def _foldable(dims: Dims, rows_from: int) -> bool:
    """Whether the samples share weights, batch sizes and seed."""
    weights = range(rows_from - len(_WEIGHTS), rows_from)
    return all(dims[i] is None for i in (*weights, rows_from, rows_from + 2))


def forward(op: Any, info: Any, dims: Dims, *args: Any) -> tuple[Any, Any]:
    """`fastrnn::recurrence` of several samples: one call where they share the weights."""
    samples = info.batch_size
    if not _foldable(dims, _ROWS_FROM):
        return one_by_one(op, samples, dims, args)
    batch = _batch(args[1], dims[1])
    output, state_n, cells, reserve = op(
        _folded(args[0], dims[0], 0, samples),
        _folded(args[1], dims[1], 1, samples),
        *args[2:_ROWS_FROM],
        *_folded_rows(dims[_ROWS_FROM:], args[_ROWS_FROM:_ROWS_TO], batch, samples),
        *args[_ROWS_TO:],
    )
    places = (0, 1, 1, 0)
    results = zip((output, state_n, cells, reserve), places, strict=True)
    return tuple(_unfolded(r, at, samples) for r, at in results), tuple(at + 1 for at in places)


def backward(op: Any, info: Any, dims: Dims, *args: Any) -> tuple[Any, Any]:
    """`fastrnn::recurrence_backward`: one call where no weight's gradient is wanted."""
    samples = info.batch_size
    weight_grad = args[-1]
    # Each sample's gradient of the weights is a product of its own.
    if weight_grad or not _foldable(dims, 3 + _ROWS_FROM):
        return one_by_one(op, samples, dims, args)
    batch = _batch(args[4], dims[4])
    rows, saved = slice(3 + _ROWS_FROM, 3 + _ROWS_TO), 3 + _ROWS_TO  # output, cells, reserve
    folds = dict.fromkeys((0, 3, saved, saved + 2), 0) | dict.fromkeys((1, 2, 4, saved + 1), 1)
    folded = [
        _folded(a, dims[i], folds[i], samples) if i in folds else a for i, a in enumerate(args)
    ]
    folded[rows] = _folded_rows(dims[rows], args[rows], batch, samples)
    grad_input, grad_state, *rest = op(*folded)
    by_sample = (_unfolded(grad_input, 0, samples), _unfolded(grad_state, 1, samples))
    return (*by_sample, *rest), (1, 2, *(None for _ in rest))
