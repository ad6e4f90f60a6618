"""`fastrnn::masked_attention` and its gradient in Triton: the operators' arguments and results."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_backward import grad_key_value, grad_mask, grad_query
from .attention_forward import attention_forward
from .attention_tiles import ADDITIVE, BOOLEAN
from .layer import precision
from .tuning import INTERPRETED, Config

_LARGEST_WORD = 2**32 - 1
_DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
# Queries and keys of a tile, and warps, by the widest head and by bits: 16, 32, 64. They are not
# tuned, since another tile sums in another order. What does not fit is not there.
_FORWARD = {
    64: {16: Config(64, 64, 4), 32: Config(32, 32, 8), 64: Config(16, 16, 8)},
    128: {16: Config(64, 64, 8), 32: Config(16, 16, 8)},
    256: {16: Config(32, 32, 8), 32: Config(16, 16, 8)},
}
_BACKWARD = _FORWARD | {
    64: _FORWARD[64] | {16: Config(64, 32, 8)},
    128: _FORWARD[128] | {16: Config(64, 32, 8)},
}


def widest(dtype: torch.dtype) -> int:
    """Units that a head can have."""
    return max(width for width, tiles in _FORWARD.items() if 8 * dtype.itemsize in tiles)


def tile(width: int, dtype: torch.dtype, backward: bool) -> Config:
    """Of heads of so many units; small in the interpreter, so that there are several."""
    if INTERPRETED:
        return Config(32, 32, 1)
    tiles = _BACKWARD if backward else _FORWARD
    return tiles[min(w for w in tiles if w >= width)][8 * dtype.itemsize]


class Attention(NamedTuple):
    """What both passes are given, the options as the kernels take them."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    seed: Tensor | None
    is_causal: bool
    dropout_p: float
    scale: float

    @property
    def lengths(self) -> tuple[int, int, int, int]:
        """Lq, Lk, E, D."""
        return self.query.size(2), self.key.size(2), self.query.size(3), self.value.size(3)

    @property
    def pairs(self) -> int:
        return self.query.size(0) * self.query.size(1)

    @property
    def numbers(self) -> tuple[float, int, float]:
        """Scale, words below which a weight is dropped, and what the others are multiplied by."""
        dropped = min(round(self.dropout_p * 2**32), _LARGEST_WORD)
        return self.scale, dropped, 1 / (1 - self.dropout_p)

    @property
    def expanded_mask(self) -> tuple[Tensor | None, tuple[int, ...]]:
        """The mask as a kernel reads it, and its strides, 0 along broadcast axes."""
        if self.mask is None:
            return None, (0,) * 4
        read = self.mask.view(torch.uint8) if self.mask.dtype == torch.bool else self.mask
        lengths = self.lengths[:2]
        return read, read.expand(*self.query.shape[:2], *lengths).stride()

    def constants(self, config: Config) -> dict[str, object]:
        dtype, mask = self.query.dtype, self.mask
        kind = 0 if mask is None else (BOOLEAN if mask.dtype == torch.bool else ADDITIVE).value
        widths = (max(16, triton.next_power_of_2(n)) for n in self.lengths[2:])
        math = tl.float64 if dtype == torch.float64 else tl.float32
        return {
            "MASK": kind,
            "CAUSAL": self.is_causal,
            "MATH": math,
            "DOT": math if INTERPRETED else _DTYPES[dtype],
            "PRECISION": precision(),
            "ROWS": config.rows,
            "KEYS": config.units,
            **dict(zip(("SIZE", "WIDTH"), widths, strict=True)),
            **config.options,
        }


def _checked(*args: object) -> Attention:
    """The arguments, rows of which have their elements side by side."""
    query, key, value, mask, *rest = args
    batch, heads, queries, size = query.shape
    keys, width = value.shape[2:]
    wanted = {
        "key": (key, (batch, heads, keys, size)),
        "value": (value, (batch, heads, keys, width)),
    }
    for name, (tensor, shape) in wanted.items():
        if (tensor.shape, tensor.dtype, tensor.device) != (shape, query.dtype, query.device):
            raise ValueError(
                f"masked_attention: {name} must be {list(shape)} {query.dtype} on {query.device}, "
                f"got {list(tensor.shape)} {tensor.dtype} on {tensor.device}"
            )
    if mask is not None:
        torch.broadcast_to(mask, (batch, heads, queries, keys))
    most = widest(query.dtype)
    if max(size, width) > most:
        raise ValueError(
            f"masked_attention: heads must have at most {most} units, got {max(size, width)}"
        )
    rows = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    return Attention(*rows, mask, *rest)


def empty_rows(like: Tensor, width: int) -> Tensor:
    """A result for rows of `width`, its heads inside its rows in memory where `like`'s are."""
    batch, heads, rows, _ = like.shape
    if like.stride(1) >= like.stride(2):
        return like.new_empty(batch, heads, rows, width)
    return like.new_empty(batch, rows, heads, width).transpose(1, 2)


def masked_attention(*args: object) -> tuple[Tensor, Tensor]:
    """Output and logsumexp, as `fastrnn._attention.reference` defines them."""
    call = _checked(*args)
    queries, _, size, width = call.lengths
    output = empty_rows(args[0], width)
    logsumexp = args[0].new_empty(args[0].shape[:-1], dtype=statistics_dtype(args[0].dtype))
    mask, mask_strides = call.expanded_mask
    config = tile(max(size, width), call.query.dtype, backward=False)
    strides = [s for t in (call.query, call.key, call.value, output) for s in t.stride()[:3]]
    if output.numel() or logsumexp.numel():
        with torch.cuda.device_of(call.query):
            attention_forward[(triton.cdiv(queries, config.rows) * call.pairs,)](
                call.query,
                call.key,
                call.value,
                mask,
                call.seed,
                output,
                logsumexp,
                *strides,
                *mask_strides,
                call.query.size(1),
                *call.lengths,
                *call.numbers,
                **call.constants(config),
            )
    return output, logsumexp


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of logsumexp: the maths', since 8 bits of it would be in every weight's gradient."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def masked_attention_backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    seed: Tensor | None,
    output: Tensor,
    logsumexp: Tensor,
    is_causal: bool,
    dropout_p: float,
    scale: float,
    mask_grad: bool,
) -> tuple[Tensor, ...]:
    """Gradients of query, key, value and, if wanted, of an additive mask."""
    given = (t.contiguous() for t in (query, key, value))
    call = _checked(*given, mask, seed, is_causal, dropout_p, scale)
    queries, keys, size, width = call.lengths
    math, grad_output = statistics_dtype(query.dtype), grad_output.contiguous()
    delta = (grad_output.to(math) * output.to(math)).sum(-1)
    read, strides = call.expanded_mask
    results = [torch.empty_like(t) for t in (call.query, call.key, call.value)]
    to_mask = query.new_empty(mask.shape if mask_grad else 0)  # contiguous, whatever the mask is
    config = tile(max(size, width), query.dtype, backward=True)
    tensors = (*call[:3], read, call.seed, grad_output, logsumexp.contiguous(), delta)
    rest = (query.size(1), *call.lengths, *call.numbers)
    constants = call.constants(config)
    rows, columns = triton.cdiv(queries, config.rows), triton.cdiv(keys, config.units)
    with torch.cuda.device_of(query):
        if call.pairs and queries:
            grad_query[(rows * call.pairs,)](*tensors, results[0], *strides, *rest, **constants)
        if call.pairs and keys:
            grad_key_value[(columns * call.pairs,)](
                *tensors, *results[1:], *strides, *rest, **constants
            )
        if to_mask.numel():
            every = [n == 1 for n in mask.shape]
            own = mask.size(0) * mask.size(1)
            grid = (own, 1 if every[2] else rows, 1 if every[3] else columns)
            names = ("EVERY_BATCH", "EVERY_HEAD", "EVERY_QUERY", "EVERY_KEY")
            grad_mask[grid](
                *tensors,
                to_mask,
                *strides,
                query.size(0),
                *rest,
                **dict(zip(names, every, strict=True)),
                **constants,
            )
    like = zip((query, key, value), results, strict=True)
    return *(empty_rows(t, t.size(-1)).copy_(g) for t, g in like), to_mask
