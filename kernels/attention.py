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
from .tuning import INTERPRETED, Config, shared_memory

_LARGEST_WORD = 2**32 - 1
_LEAST_SCALE = 1e-30  # in place of what is 0 in float32, which -inf must not be multiplied by
_DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
# A program's own rows, rows of a step, warps and steps whose loads are under way, by bits and the
# widest head. What does not fit is not there. Not tuned: another step sums in another order.
_EXACT = {
    32: {64: Config(32, 32, 8), 128: Config(16, 16, 8), 256: Config(16, 16, 8)},
    64: {64: Config(16, 16, 8)},
}
# The same of 16 bits, by kernel. Hopper's and the first Blackwell's products read their operands
# from shared memory; two groups of four warps that have 64 rows each share what they read.
_LARGE = {
    "plain": {64: Config(128, 64, 4, 3), 128: Config(128, 128, 8, 2), 256: Config(128, 32, 8, 2)},
    "forward": {64: Config(128, 64, 8, 3), 128: Config(128, 64, 8, 2), 256: Config(128, 32, 8, 2)},
    "query": {64: Config(128, 64, 8, 3), 128: Config(128, 64, 8, 2), 256: Config(128, 32, 8)},
    "key": {64: Config(128, 64, 8, 3), 128: Config(128, 32, 8, 3), 256: Config(32, 32, 8)},
    # Its rows are the query's, which pads the statistics of rows to them.
    "mask": {64: Config(128, 32, 8, 3), 128: Config(128, 32, 8, 2), 256: Config(128, 32, 8)},
}
# Elsewhere they lie in registers, too few of them for loads under way beside a mask or dropout.
_SMALL = {
    "forward": {64: Config(64, 64, 4), 128: Config(64, 64, 8), 256: Config(32, 32, 8)},
    "query": {64: Config(64, 32, 4), 128: Config(64, 32, 8), 256: Config(32, 32, 8)},
    "key": {64: Config(64, 32, 4), 128: Config(64, 32, 8), 256: Config(32, 32, 8)},
    # Of 256 units 64 keys: with 32, Triton gives a thread operands enough to spill 1,168 bytes.
    "mask": {64: Config(64, 32, 4), 128: Config(64, 32, 8), 256: Config(32, 64, 8)},
}
# What an additive mask or dropout takes of the registers, these tiles leave.
_HEAVY = {
    "forward": {128: Config(128, 32, 8, 2)},
    "query": {128: Config(128, 32, 8, 2), 256: Config(128, 16, 8)},
    "key": {128: Config(64, 32, 8, 2)},
}
_SMALL_HEAVY = {
    "forward": {64: Config(64, 32, 4)},
    "query": {128: Config(32, 32, 8)},
    "mask": {128: Config(32, 32, 8)},
}
_LEAST_LARGE = 232_448  # bytes of shared memory
_GROUP = 64  # rows of four warps


def widest(dtype: torch.dtype) -> int:
    """Units that a head can have."""
    return max(_EXACT.get(8 * dtype.itemsize, _SMALL["key"]))


def tile(width: int, dtype: torch.dtype, kernel: str, plain: bool, heavy: bool, own: int) -> Config:
    """Of heads of so many units; small in the interpreter, so that there are several.

    kernel: "forward", "query", "key" or "mask"; plain: neither a mask nor dropout; heavy: an
    additive mask or dropout; own: rows that the programs share, which decide on how many each has,
    not on the order of a row's sums.
    """
    if INTERPRETED:
        return Config(32, 32, 1)
    large = dtype.itemsize <= 2 and shared_memory() >= _LEAST_LARGE
    if dtype.itemsize > 2:
        tiles = _EXACT[8 * dtype.itemsize]
    elif large:
        tiles = _LARGE["plain" if plain and kernel == "forward" else kernel]
    else:
        tiles = _SMALL[kernel]
    if heavy and dtype.itemsize <= 2:
        tiles = tiles | (_HEAVY if large else _SMALL_HEAVY).get(kernel, {})
    config = tiles[min(w for w in tiles if w >= width)]
    if large and own <= _GROUP < config.rows:
        return config._replace(rows=_GROUP, warps=4)
    pipelined = dtype.itemsize <= 2 and not large and plain and width <= 128
    return config._replace(stages=2) if pipelined else config


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
    def numbers(self) -> tuple[float, ...]:
        """Heads, lengths, scale, words below which a weight is dropped, factor of the others."""
        dropped = min(round(self.dropout_p * 2**32), _LARGEST_WORD)
        lengths = self.query.size(1), *self.lengths[:2]
        return *lengths, self.scale, dropped, 1 / (1 - self.dropout_p)

    @property
    def expanded_mask(self) -> tuple[Tensor | None, tuple[int, ...]]:
        """The mask as a kernel reads it, and its strides, 0 along broadcast axes."""
        if self.mask is None:
            return None, (0,) * 4
        read = self.mask.view(torch.uint8) if self.mask.dtype == torch.bool else self.mask
        lengths = self.lengths[:2]
        return read, read.expand(*self.query.shape[:2], *lengths).stride()

    def tile(self, kernel: str) -> Config:
        queries, keys, *widths = self.lengths
        plain = self.mask is None and self.seed is None
        additive = self.mask is not None and self.mask.dtype != torch.bool
        heavy = additive or self.seed is not None
        own = keys if kernel == "key" else queries
        return tile(max(widths), self.query.dtype, kernel, plain, heavy, own)

    def constants(self, config: Config) -> dict[str, object]:
        dtype, mask = self.query.dtype, self.mask
        kind = 0 if mask is None else (BOOLEAN if mask.dtype == torch.bool else ADDITIVE).value
        widths = (max(16, triton.next_power_of_2(n)) for n in self.lengths[2:])
        math = tl.float64 if dtype == torch.float64 else tl.float32
        return {
            "E": self.lengths[2],
            "D": self.lengths[3],
            "MASK": kind,
            "EVERY_QUERY": mask is not None and mask.size(2) == 1,
            "EVERY_KEY": mask is not None and mask.size(3) == 1,
            "CAUSAL": self.is_causal,
            "MATH": math,
            "DOT": math if INTERPRETED else _DTYPES[dtype],
            "ROWS": config.rows,
            "KEYS": config.units,
            **dict(zip(("SIZE", "WIDTH"), widths, strict=True)),
            "STAGES": config.stages,
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
        if mask.dtype == torch.bool and query.dtype == torch.float64:
            # 0 or -inf to add: Triton 3.6 cannot multiply float64 with what depends on bytes.
            mask = mask.to(query.dtype).log()
    most = widest(query.dtype)
    if max(size, width) > most:
        raise ValueError(
            f"masked_attention: heads must have at most {most} units, got {max(size, width)}"
        )
    return Attention(*map(rows_side_by_side, (query, key, value)), mask, *rest)


def rows_side_by_side(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def empty_rows(like: Tensor, width: int) -> Tensor:
    """A result for rows of `width`, its heads inside its rows in memory where `like`'s are."""
    batch, heads, rows, _ = like.shape
    if like.stride(1) >= like.stride(2):
        return like.new_empty(batch, heads, rows, width)
    return like.new_empty(batch, rows, heads, width).transpose(1, 2)


def masked_attention(*args: object) -> tuple[Tensor, Tensor]:
    """Output and logsumexp, as `fastrnn._attention.reference` defines them."""
    call = _checked(*args)
    if call.scale < 0:  # the kernel takes the highest product for the highest score
        call = call._replace(query=-call.query, scale=-call.scale)
    call = call._replace(scale=max(call.scale, _LEAST_SCALE))
    output = empty_rows(args[0], call.value.size(-1))
    logsumexp = args[0].new_empty(args[0].shape[:-1], dtype=statistics_dtype(args[0].dtype))
    mask, mask_strides = call.expanded_mask
    strides = *map(row_strides, (*call[:3], output)), mask_strides
    if logsumexp.numel():
        with torch.cuda.device_of(call.query):
            config = call.tile("forward")
            grid = (triton.cdiv(call.query.size(2), config.rows) * call.pairs,)
            attention_forward[grid](
                *call[:3],
                mask,
                call.seed,
                output,
                logsumexp,
                *strides,
                *call.numbers,
                **call.constants(config),
            )
    return output, logsumexp


def row_strides(tensor: Tensor) -> tuple[int, ...]:
    """Of batch, heads and rows."""
    return tensor.stride()[:3]


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
    call = _checked(query, key, value, mask, seed, is_causal, dropout_p, scale)
    grad_output, output = rows_side_by_side(grad_output), rows_side_by_side(output)
    read, mask_strides = call.expanded_mask
    to_query, to_key, to_value = (empty_rows(t, t.size(-1)) for t in (query, key, value))
    to_mask = query.new_empty(mask.shape if mask_grad else 0)  # contiguous, whatever the mask is
    with torch.cuda.device_of(query):
        by_query, by_key = call.tile("query"), call.tile("key")
        queries, keys = query.size(2), key.size(2)
        rows, columns = triton.cdiv(queries, by_query.rows), triton.cdiv(keys, by_key.rows)
        padded = rows * by_query.rows  # a whole number of the others' steps
        statistics = logsumexp.new_empty(*query.shape[:2], 2, padded)
        strides = *map(row_strides, (*call[:3], grad_output)), mask_strides
        shared = (
            *call[:3],
            read,
            call.seed,
            grad_output,
            statistics,
            *strides,
            *call.numbers,
            padded,
        )
        if call.pairs and queries:
            from_output = output, row_strides(output), logsumexp.contiguous()
            into = to_query, row_strides(to_query)
            grid = (rows * call.pairs,)
            grad_query[grid](*shared, *from_output, *into, **call.constants(by_query))
        if call.pairs and keys:
            into = to_key, row_strides(to_key), to_value, row_strides(to_value)
            turned = Config(by_key.units, by_key.rows, *by_key[2:])
            grad_key_value[(columns * call.pairs,)](*shared, *into, **call.constants(turned))
        if to_mask.numel():
            every = [n == 1 for n in mask.shape]
            both = call.tile("mask")
            blocks = triton.cdiv(mask.size(2), both.rows) * triton.cdiv(mask.size(3), both.units)
            grad_mask[(mask.size(0) * mask.size(1) * blocks,)](
                *shared,
                to_mask,
                query.size(0),
                EVERY_BATCH=every[0],
                EVERY_HEAD=every[1],
                **call.constants(both),
            )
    return to_query, to_key, to_value, to_mask
