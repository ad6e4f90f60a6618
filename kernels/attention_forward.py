"""Masked attention, forward: an online softmax over tiles of keys."""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_tiles import (
    ADDITIVE,
    LOG2_E,
    NONE,
    NUMBERS,
    head_of,
    in_math,
    kept_weights,
    load_rows,
    masks,
    pair_and_first,
    powers,
    score_factor,
    scores,
    store_rows,
)


@triton.jit(do_not_specialize=NUMBERS)
def attention_forward(
    query,  # [B, heads, Lq, E], and so on; elements of a row side by side
    key,
    value,
    mask,  # uint8 or of the query's dtype, expanded to [B, heads, Lq, Lk]; or None
    seed,  # int64 [1] or None: no dropout
    output,
    logsumexp,  # [B, heads, Lq], contiguous
    query_strides,  # of B, heads, Lq, and so on
    key_strides,
    value_strides,
    output_strides,
    mask_strides,  # of all four axes
    heads,
    queries,
    keys,
    scale: tl.float64,
    dropped: tl.int64,
    share: tl.float64,  # 1 / (1 - dropout_p)
    E: tl.constexpr,
    D: tl.constexpr,
    MASK: tl.constexpr,
    EVERY_QUERY: tl.constexpr,
    EVERY_KEY: tl.constexpr,
    CAUSAL: tl.constexpr,
    MATH: tl.constexpr,
    DOT: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    pair, first = pair_and_first(queries, ROWS, CAUSAL)
    query = head_of(query, pair, heads, query_strides)
    key = head_of(key, pair, heads, key_strides)
    value = head_of(value, pair, heads, value_strides)
    if MASK != NONE:
        mask = head_of(mask, pair, heads, mask_strides)
    i = first + tl.arange(0, ROWS)[:, None]
    q = load_rows(query, first, query_strides[2], queries, ROWS, E, SIZE, DOT)
    factor = score_factor(scale, MASK, MATH)
    unit = 1.0 if MASK == ADDITIVE else factor
    most = tl.full((ROWS,), float("-inf"), MATH)
    total = tl.zeros((ROWS,), MATH)
    sums = tl.zeros((ROWS, WIDTH), MATH)
    end, whole = keys.to(tl.int64), keys.to(tl.int64) // KEYS * KEYS
    if CAUSAL:
        end, whole = tl.minimum(end, first + ROWS), tl.minimum(whole, first // KEYS * KEYS)
    for edge in tl.static_range(2):
        begin = whole if edge else whole * 0
        for first_key in tl.range(begin, end if edge else whole, KEYS, num_stages=STAGES):
            j = first_key + tl.arange(0, KEYS)[None, :]
            k = load_rows(key, first_key, key_strides[2], keys, KEYS, E, SIZE, DOT, not edge)
            v = load_rows(value, first_key, value_strides[2], keys, KEYS, D, WIDTH, DOT, not edge)
            tile = mask, i, j, mask_strides, queries, keys
            allowed, added = masks(*tile, MASK, EVERY_QUERY, EVERY_KEY, CAUSAL, not edge, MATH)
            some = True if MASK == NONE else tl.max(allowed.to(tl.int32)) != 0
            if some:
                s = scores(q, k, factor, added, MASK, MATH)
                if MASK != NONE or edge:
                    s = tl.where(allowed, s, float("-inf"))
                higher = tl.maximum(most, tl.max(s, 1) * unit)
                # No row is -inf here for good: exp2(-inf - 0) is 0 in one that has had nothing yet.
                base = tl.where(higher == float("-inf"), 0.0, higher)
                rescale, w = powers(most, base, MASK), powers(s * unit, base[:, None], MASK)
                total = total * rescale + tl.sum(w, 1)
                if seed is not None:
                    kept = kept_weights(seed, pair, i, first_key, dropped, ROWS, KEYS)
                    w = tl.where(kept, w, 0.0)
                sums = sums * rescale[:, None]
                sums = tl.dot(w.to(DOT), v, sums, input_precision="ieee", out_dtype=MATH)
                most = higher
    empty = total == 0
    if seed is not None:
        sums = sums * in_math(share, MATH)
    result = tl.where(empty[:, None], 0.0, sums / tl.where(empty, 1.0, total)[:, None])
    output = head_of(output, pair, heads, output_strides)
    store_rows(output, first, output_strides[2], queries, result, ROWS, D, WIDTH)
    power = tl.log2(tl.where(empty, 1.0, total))
    at = most + power / LOG2_E if MASK == ADDITIVE else (most + power) / LOG2_E
    at = tl.where(empty, float("inf"), at)
    i = first + tl.arange(0, ROWS)
    tl.store(logsumexp + pair * queries + i, at, mask=i < queries)
