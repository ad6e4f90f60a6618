"""Masked attention, backward: a kernel for queries, one for keys and values, one for the mask.

Each makes the weights anew from the scores and the forward pass's logsumexp, and sums in an order
of its own: no atomics, the same bits every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_tiles import (
    NUMBERS,
    load_rows,
    masks,
    pair_and_first,
    store_rows,
    weight_gradients,
)


@triton.jit
def row_statistics(logsumexp, delta, pair, i, queries):
    """Of queries i of a pair of batch and head; a row beyond the last has weights of 0."""
    place, inside = pair * queries + i, i < queries
    found = tl.load(logsumexp + place, mask=inside, other=float("inf"))
    return found, tl.load(delta + place, mask=inside, other=0.0)


@triton.jit(do_not_specialize=NUMBERS)
def grad_query(
    query,  # [B, heads, Lq, E], and so on: contiguous
    key,
    value,
    mask,  # uint8 or of the query's dtype, expanded to [B, heads, Lq, Lk]; or None
    seed,  # int64 [1] or None
    grad_output,
    logsumexp,  # [B, heads, Lq]
    delta,  # [B, heads, Lq], the rows' products of output and gradient
    result,  # the query's gradient
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
    share: tl.float64,
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
    i = first + tl.arange(0, ROWS)
    query += pair * queries * size
    key += pair * keys * size
    value += pair * keys * width
    grad_output += pair * queries * width
    if mask is not None:
        mask += pair // heads * mask_b + pair % heads * mask_h
    q = load_rows(query, i, size, queries, size, SIZE, DOT)
    grad = load_rows(grad_output, i, width, queries, width, WIDTH, DOT)
    at, products = row_statistics(logsumexp, delta, pair, i, queries)
    total = tl.zeros((ROWS, SIZE), MATH)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, first + ROWS)
    for first_key in range(0, end, KEYS):
        j = first_key + tl.arange(0, KEYS).to(tl.int64)
        allowed, added = masks(mask, i, j, mask_i, mask_j, queries, keys, MASK, CAUSAL, MATH)
        if tl.max(allowed.to(tl.int32)) != 0:
            k = load_rows(key, j, size, keys, size, SIZE, DOT)
            v = load_rows(value, j, width, keys, width, WIDTH, DOT)
            rows = q, k, v, grad, at, products, scale, allowed, added
            dropout = seed, pair, i, first_key, dropped, share
            _, to_s = weight_gradients(*rows, *dropout, MASK, MATH, PRECISION, ROWS, KEYS)
            total = tl.dot(to_s.to(DOT), k, total, input_precision=PRECISION, out_dtype=MATH)
    total = total * (scale * tl.full((1, 1), 1, MATH)).to(MATH)
    store_rows(result + pair * queries * size, i, size, queries, size, total, SIZE)


@triton.jit(do_not_specialize=NUMBERS)
def grad_key_value(
    query,  # as in grad_query
    key,
    value,
    mask,
    seed,
    grad_output,
    logsumexp,
    delta,
    to_key,  # the key's gradient
    to_value,  # the value's
    mask_b,
    mask_h,
    mask_i,
    mask_j,
    heads,
    queries,
    keys,
    size,
    width,
    scale: tl.float64,
    dropped: tl.int64,
    share: tl.float64,
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
    pair, first_key = pair_and_first(keys, KEYS)
    j = first_key + tl.arange(0, KEYS)
    query += pair * queries * size
    key += pair * keys * size
    value += pair * keys * width
    grad_output += pair * queries * width
    if mask is not None:
        mask += pair // heads * mask_b + pair % heads * mask_h
    k = load_rows(key, j, size, keys, size, SIZE, DOT)
    v = load_rows(value, j, width, keys, width, WIDTH, DOT)
    key_sum, value_sum = tl.zeros((KEYS, SIZE), MATH), tl.zeros((KEYS, WIDTH), MATH)
    begin = first_key // ROWS * ROWS if CAUSAL else first_key * 0
    for first in range(begin, queries, ROWS):
        i = first + tl.arange(0, ROWS).to(tl.int64)
        allowed, added = masks(mask, i, j, mask_i, mask_j, queries, keys, MASK, CAUSAL, MATH)
        if tl.max(allowed.to(tl.int32)) != 0:
            q = load_rows(query, i, size, queries, size, SIZE, DOT)
            grad = load_rows(grad_output, i, width, queries, width, WIDTH, DOT)
            at, products = row_statistics(logsumexp, delta, pair, i, queries)
            rows = q, k, v, grad, at, products, scale, allowed, added
            dropout = seed, pair, i, first_key, dropped, share
            w, to_s = weight_gradients(*rows, *dropout, MASK, MATH, PRECISION, ROWS, KEYS)
            w, to_s = tl.trans(w.to(DOT)), tl.trans(to_s.to(DOT))
            value_sum = tl.dot(w, grad, value_sum, input_precision=PRECISION, out_dtype=MATH)
            key_sum = tl.dot(to_s, q, key_sum, input_precision=PRECISION, out_dtype=MATH)
    key_sum = key_sum * (scale * tl.full((1, 1), 1, MATH)).to(MATH)
    store_rows(to_key + pair * keys * size, j, size, keys, size, key_sum, SIZE)
    store_rows(to_value + pair * keys * width, j, width, keys, width, value_sum, WIDTH)


@triton.jit(do_not_specialize=NUMBERS)
def grad_mask(
    query,  # as in grad_query
    key,
    value,
    mask,
    seed,
    grad_output,
    logsumexp,
    delta,
    result,  # [B or 1, heads or 1, Lq or 1, Lk or 1], contiguous
    mask_b,
    mask_h,
    mask_i,
    mask_j,
    batches,
    heads,
    queries,
    keys,
    size,
    width,
    scale: tl.float64,
    dropped: tl.int64,
    share: tl.float64,
    MASK: tl.constexpr,
    CAUSAL: tl.constexpr,
    MATH: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    EVERY_BATCH: tl.constexpr,  # whether the mask is one for all batches, and so on
    EVERY_HEAD: tl.constexpr,
    EVERY_QUERY: tl.constexpr,
    EVERY_KEY: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The scores' gradients, summed over what the mask is broadcast along."""
    own = tl.program_id(0).to(tl.int64)
    own_heads = 1 if EVERY_HEAD else heads
    own_b, own_h = own // own_heads, own % own_heads
    first_row, first_column = tl.program_id(1) * ROWS, tl.program_id(2) * KEYS
    b_end = batches if EVERY_BATCH else own_b + 1
    h_end = heads if EVERY_HEAD else own_h + 1
    i_end = queries if EVERY_QUERY else tl.minimum(queries, first_row + ROWS)
    j_end = keys if EVERY_KEY else tl.minimum(keys, first_column + KEYS)
    total = tl.zeros((ROWS, KEYS), MATH)
    for b in range(own_b, b_end):
        for h in range(own_h, h_end):
            pair = b * heads + h
            for first in range(first_row, i_end, ROWS):
                i = first + tl.arange(0, ROWS).to(tl.int64)
                q = load_rows(query + pair * queries * size, i, size, queries, size, SIZE, DOT)
                place = grad_output + pair * queries * width
                grad = load_rows(place, i, width, queries, width, WIDTH, DOT)
                at, products = row_statistics(logsumexp, delta, pair, i, queries)
                for first_key in range(first_column, j_end, KEYS):
                    j = first_key + tl.arange(0, KEYS).to(tl.int64)
                    place = mask + b * mask_b + h * mask_h
                    allowed, added = masks(
                        place, i, j, mask_i, mask_j, queries, keys, MASK, CAUSAL, MATH
                    )
                    k = load_rows(key + pair * keys * size, j, size, keys, size, SIZE, DOT)
                    place = value + pair * keys * width
                    v = load_rows(place, j, width, keys, width, WIDTH, DOT)
                    rows = q, k, v, grad, at, products, scale, allowed, added
                    dropout = seed, pair, i, first_key, dropped, share
                    _, to_s = weight_gradients(*rows, *dropout, MASK, MATH, PRECISION, ROWS, KEYS)
                    total += to_s
    rows, columns = queries, keys
    if EVERY_QUERY:
        total, rows = tl.broadcast_to(tl.sum(total, 0)[None, :], (ROWS, KEYS)), 1
    if EVERY_KEY:
        total, columns = tl.broadcast_to(tl.sum(total, 1)[:, None], (ROWS, KEYS)), 1
    i, j = first_row + tl.arange(0, ROWS)[:, None], first_column + tl.arange(0, KEYS)[None, :]
    place = result + (own * rows + i.to(tl.int64)) * columns + j
    tl.store(place, total.to(result.dtype.element_ty), mask=(i < rows) & (j < columns))
