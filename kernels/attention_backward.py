"""Masked attention, backward: a kernel for queries, one for keys and values, one for the mask.

Each makes the weights anew from the scores and the forward pass's logsumexp, and sums in an order
of its own: no atomics, the same bits every time.
"""

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
    score_factor,
    store_rows,
    weight_gradients,
    whole_and_first,
)


@triton.jit
def row_statistics(statistics, pair, first, padded, ROWS: tl.constexpr):
    """Of the queries from `first` on, what `grad_query` has left; weights beyond the last are 0."""
    place = statistics + pair * 2 * padded + first + tl.arange(0, ROWS)
    return tl.load(place), tl.load(place + padded)


@triton.jit(do_not_specialize=NUMBERS)
def grad_query(
    query,  # [B, heads, Lq, E], and so on; elements of a row side by side
    key,
    value,
    mask,  # uint8 or of the query's dtype, expanded to [B, heads, Lq, Lk]; or None
    seed,  # int64 [1] or None
    grad_output,
    statistics,  # [B, heads, 2, Lq or more], filled here: logsumexp as `powers` takes it and delta,
    # the rows' products of output and gradient; infinity and 0 beyond the last query
    query_strides,  # of B, heads, Lq, and so on
    key_strides,
    value_strides,
    grad_strides,
    mask_strides,  # of all four axes
    heads,
    queries,
    keys,
    scale: tl.float64,
    dropped: tl.int64,
    share: tl.float64,
    padded,  # the statistics' last axis
    output,
    output_strides,
    logsumexp,  # [B, heads, Lq], contiguous
    result,  # the query's gradient
    result_strides,
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
    grad_output = head_of(grad_output, pair, heads, grad_strides)
    output = head_of(output, pair, heads, output_strides)
    if MASK != NONE:
        mask = head_of(mask, pair, heads, mask_strides)
    q = load_rows(query, first, query_strides[2], queries, ROWS, E, SIZE, DOT)
    grad = load_rows(grad_output, first, grad_strides[2], queries, ROWS, D, WIDTH, DOT)
    out = load_rows(output, first, output_strides[2], queries, ROWS, D, WIDTH, MATH)
    row = first + tl.arange(0, ROWS)
    at = tl.load(logsumexp + pair * queries + row, mask=row < queries, other=float("inf"))
    at = at if MASK == ADDITIVE else at * LOG2_E
    delta = tl.sum(grad.to(MATH) * out, 1)
    place = statistics + pair * 2 * padded + row
    tl.store(place, at)
    tl.store(place + padded, delta)
    i = first + tl.arange(0, ROWS)[:, None]
    factor = score_factor(scale, MASK, MATH)
    total = tl.zeros((ROWS, SIZE), MATH)
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
                kept, more = None, 1.0
                if seed is not None:
                    kept = kept_weights(seed, pair, i, first_key, dropped, ROWS, KEYS)
                    more = in_math(share, MATH)
                rows = q, k, grad, v, at[:, None], delta[:, None]
                masked = factor, allowed, added, kept, more
                w, to_s = weight_gradients(*rows, *masked, MASK, not edge, MATH)
                total = tl.dot(to_s.to(DOT), k, total, input_precision="ieee", out_dtype=MATH)
    total = total * in_math(scale, MATH)
    result = head_of(result, pair, heads, result_strides)
    store_rows(result, first, result_strides[2], queries, total, ROWS, E, SIZE)


@triton.jit(do_not_specialize=NUMBERS)
def grad_key_value(
    query,  # as in grad_query
    key,
    value,
    mask,
    seed,
    grad_output,
    statistics,
    query_strides,
    key_strides,
    value_strides,
    grad_strides,
    mask_strides,
    heads,
    queries,
    keys,
    scale: tl.float64,
    dropped: tl.int64,
    share: tl.float64,
    padded,
    to_key,  # the key's gradient
    to_key_strides,
    to_value,  # the value's
    to_value_strides,
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
    """Its tiles are [KEYS, ROWS], so that products take the weights from registers."""
    pair, first_key = pair_and_first(keys, KEYS, False)
    query = head_of(query, pair, heads, query_strides)
    key = head_of(key, pair, heads, key_strides)
    value = head_of(value, pair, heads, value_strides)
    grad_output = head_of(grad_output, pair, heads, grad_strides)
    if MASK != NONE:
        mask = head_of(mask, pair, heads, mask_strides)
    j = first_key + tl.arange(0, KEYS)[:, None]
    k = load_rows(key, first_key, key_strides[2], keys, KEYS, E, SIZE, DOT)
    v = load_rows(value, first_key, value_strides[2], keys, KEYS, D, WIDTH, DOT)
    factor = score_factor(scale, MASK, MATH)
    key_sum, value_sum = tl.zeros((KEYS, SIZE), MATH), tl.zeros((KEYS, WIDTH), MATH)
    # Queries from `begin` on, those from `whole` on without an edge.
    begin, whole = first_key * 0, first_key * 0
    if CAUSAL:
        begin = first_key // ROWS * ROWS
        whole = (first_key + KEYS + ROWS - 2) // ROWS * ROWS
    whole = tl.where(first_key + KEYS > keys, padded, whole)
    for inside in tl.static_range(2):
        start, stop = whole if inside else begin, queries if inside else tl.minimum(queries, whole)
        for first in tl.range(start, stop, ROWS, num_stages=STAGES):
            row = first + tl.arange(0, ROWS)
            i = row[None, :]
            q = load_rows(query, first, query_strides[2], queries, ROWS, E, SIZE, DOT)
            grad = load_rows(grad_output, first, grad_strides[2], queries, ROWS, D, WIDTH, DOT)
            at, delta = row_statistics(statistics, pair, first, padded, ROWS)
            tile = mask, i, j, mask_strides, queries, keys
            allowed, added = masks(*tile, MASK, EVERY_QUERY, EVERY_KEY, CAUSAL, inside, MATH)
            some = True if MASK == NONE else tl.max(allowed.to(tl.int32)) != 0
            if some:
                kept, more = None, 1.0
                if seed is not None:
                    kept = kept_weights(seed, pair, row[:, None], first_key, dropped, ROWS, KEYS)
                    kept, more = tl.trans(kept), in_math(share, MATH)
                rows = k, q, v, grad, at[None, :], delta[None, :]
                masked = factor, allowed, added, kept, more
                w, to_s = weight_gradients(*rows, *masked, MASK, inside, MATH)
                value_sum = tl.dot(
                    w.to(DOT), grad, value_sum, input_precision="ieee", out_dtype=MATH
                )
                key_sum = tl.dot(to_s.to(DOT), q, key_sum, input_precision="ieee", out_dtype=MATH)
    key_sum = key_sum * in_math(scale, MATH)
    to_key = head_of(to_key, pair, heads, to_key_strides)
    to_value = head_of(to_value, pair, heads, to_value_strides)
    store_rows(to_key, first_key, to_key_strides[2], keys, key_sum, KEYS, E, SIZE)
    store_rows(to_value, first_key, to_value_strides[2], keys, value_sum, KEYS, D, WIDTH)


@triton.jit(do_not_specialize=NUMBERS)
def grad_mask(
    query,  # as in grad_query
    key,
    value,
    mask,
    seed,
    grad_output,
    statistics,
    query_strides,
    key_strides,
    value_strides,
    grad_strides,
    mask_strides,
    heads,
    queries,
    keys,
    scale: tl.float64,
    dropped: tl.int64,
    share: tl.float64,
    padded,
    result,  # [B or 1, heads or 1, Lq or 1, Lk or 1], contiguous
    batches,
    EVERY_BATCH: tl.constexpr,  # whether the mask is one for all batches, and so on
    EVERY_HEAD: tl.constexpr,
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
    """The scores' gradients, summed over what the mask is broadcast along."""
    program = tl.program_id(0).to(tl.int64)
    rest, first_column = whole_and_first(program, 1 if EVERY_KEY else keys, KEYS)
    own, first_row = whole_and_first(rest, 1 if EVERY_QUERY else queries, ROWS)
    first_row, first_column = first_row.to(tl.int32), first_column.to(tl.int32)  # fewer registers
    own_heads = 1 if EVERY_HEAD else heads
    own_b, own_h = own // own_heads, own % own_heads
    b_end = batches if EVERY_BATCH else own_b + 1
    h_end = heads if EVERY_HEAD else own_h + 1
    i_end = queries if EVERY_QUERY else tl.minimum(queries, first_row + ROWS)
    j_end = keys if EVERY_KEY else tl.minimum(keys, first_column + KEYS)
    factor = score_factor(scale, MASK, MATH)
    total = tl.zeros((ROWS, KEYS), MATH)
    for b in range(own_b, b_end):
        for h in range(own_h, h_end):
            pair = b * heads + h
            q_at = head_of(query, pair, heads, query_strides)
            k_at = head_of(key, pair, heads, key_strides)
            v_at = head_of(value, pair, heads, value_strides)
            grad_at = head_of(grad_output, pair, heads, grad_strides)
            mask_at = head_of(mask, pair, heads, mask_strides)
            for first in range(first_row, i_end, ROWS):
                row = first + tl.arange(0, ROWS).to(tl.int64)
                i = row[:, None]
                q = load_rows(q_at, first, query_strides[2], queries, ROWS, E, SIZE, DOT)
                grad = load_rows(grad_at, first, grad_strides[2], queries, ROWS, D, WIDTH, DOT)
                at, delta = row_statistics(statistics, pair, first, padded, ROWS)
                for first_key in range(first_column, j_end, KEYS):
                    j = first_key + tl.arange(0, KEYS).to(tl.int64)[None, :]
                    k = load_rows(k_at, first_key, key_strides[2], keys, KEYS, E, SIZE, DOT)
                    v = load_rows(v_at, first_key, value_strides[2], keys, KEYS, D, WIDTH, DOT)
                    tile = mask_at, i, j, mask_strides, queries, keys
                    allowed, added = masks(*tile, MASK, EVERY_QUERY, EVERY_KEY, CAUSAL, False, MATH)
                    kept, more = None, 1.0
                    if seed is not None:
                        kept = kept_weights(seed, pair, i, first_key, dropped, ROWS, KEYS)
                        more = in_math(share, MATH)
                    rows = q, k, grad, v, at[:, None], delta[:, None]
                    masked = factor, allowed, added, kept, more
                    w, to_s = weight_gradients(*rows, *masked, MASK, False, MATH)
                    total += to_s
    rows, columns = queries, keys
    if EVERY_QUERY:
        total, rows = tl.broadcast_to(tl.sum(total, 0)[None, :], (ROWS, KEYS)), 1
    if EVERY_KEY:
        total, columns = tl.broadcast_to(tl.sum(total, 1)[:, None], (ROWS, KEYS)), 1
    i, j = first_row + tl.arange(0, ROWS)[:, None], first_column + tl.arange(0, KEYS)[None, :]
    place = result + (own * rows + i.to(tl.int64)) * columns + j
    tl.store(place, total.to(result.dtype.element_ty), mask=(i < rows) & (j < columns))
