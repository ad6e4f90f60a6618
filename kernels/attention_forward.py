"""Masked attention, forward: an online softmax over tiles of keys."""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_tiles import (
    NUMBERS,
    kept_weights,
    load_rows,
    masks,
    pair_and_first,
    scores,
    store_rows,
)


@triton.jit(do_not_specialize=NUMBERS)
def attention_forward(
    query,  # [B, heads, Lq, E], and so on with their strides; elements of a row side by side
    key,
    value,
    mask,  # uint8 or of the query's dtype, expanded to [B, heads, Lq, Lk]; or None
    seed,  # int64 [1] or None: no dropout
    output,
    logsumexp,  # [B, heads, Lq], contiguous
    query_b,
    query_h,
    query_i,
    key_b,
    key_h,
    key_i,
    value_b,
    value_h,
    value_i,
    output_b,
    output_h,
    output_i,
    mask_b,
    mask_h,
    mask_i,
    mask_j,
    heads,
    queries,
    keys,
    size,  # E
    width,  # D
    scale: tl.float64,
    dropped: tl.int64,
    share: tl.float64,  # 1 / (1 - dropout_p)
    MASK: tl.constexpr,
    CAUSAL: tl.constexpr,
    MATH: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    pair, first = pair_and_first(queries, ROWS)
    batch, head = pair // heads, pair % heads
    i = first + tl.arange(0, ROWS)
    key += batch * key_b + head * key_h
    value += batch * value_b + head * value_h
    if mask is not None:
        mask += batch * mask_b + head * mask_h
    q_at = query + batch * query_b + head * query_h
    q = load_rows(q_at, i, query_i, queries, size, SIZE, DOT)
    most = tl.full((ROWS,), float("-inf"), MATH)
    total = tl.zeros((ROWS,), MATH)
    sums = tl.zeros((ROWS, WIDTH), MATH)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, first + ROWS)
    for first_key in range(0, end, KEYS):
        j = first_key + tl.arange(0, KEYS).to(tl.int64)
        allowed, added = masks(mask, i, j, mask_i, mask_j, queries, keys, MASK, CAUSAL, MATH)
        if tl.max(allowed.to(tl.int32)) != 0:  # a tile that the masks empty is skipped
            k = load_rows(key, j, key_i, keys, size, SIZE, DOT)
            v = load_rows(value, j, value_i, keys, width, WIDTH, DOT)
            s = scores(q, k, scale, allowed, added, MASK, MATH, PRECISION)
            higher = tl.maximum(most, tl.max(s, 1))
            # No row is -inf here for good: exp(-inf - 0) is 0 in one that has had nothing yet.
            base = tl.where(higher == float("-inf"), 0.0, higher)
            rescale, w = tl.exp(most - base), tl.exp(s - base[:, None])
            total = total * rescale + tl.sum(w, 1)
            if seed is not None:
                kept = kept_weights(seed, pair, i, first_key, dropped, ROWS, KEYS)
                w = tl.where(kept, w, 0.0)
            sums = tl.dot(
                w.to(DOT), v, sums * rescale[:, None], input_precision=PRECISION, out_dtype=MATH
            )
            most = higher
    empty = total == 0
    if seed is not None:
        sums = sums * (share * tl.full((1, 1), 1, MATH)).to(MATH)
    result = tl.where(empty[:, None], 0.0, sums / tl.where(empty, 1.0, total)[:, None])
    place = output + batch * output_b + head * output_h
    store_rows(place, i, output_i, queries, width, result, WIDTH)
    at = tl.where(empty, float("inf"), most + tl.log(tl.where(empty, 1.0, total)))
    place = logsumexp + pair * queries + i
    tl.store(place, at.to(logsumexp.dtype.element_ty), mask=i < queries)
