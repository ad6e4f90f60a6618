"""What the attention kernels share: tiles of rows, of scores after the masks, and of dropout.

Products of float32 are exact ("ieee"), whatever torch allows for its own, as on every backend.
"""

from __future__ import annotations

import triton
import triton.language as tl

# What MASK means to a kernel; NONE: there is no mask.
NONE, BOOLEAN, ADDITIVE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
# Arguments of the kernels whose values are not worth a compilation each.
NUMBERS = ("queries", "keys", "dropped")
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def whole_and_first(program, length, ROWS: tl.constexpr):
    """Of programs that share wholes of `length` rows: the whole, and the first of the rows."""
    blocks = tl.cdiv(length, ROWS)
    return program // blocks, program % blocks * ROWS


@triton.jit
def pair_and_first(length, ROWS: tl.constexpr, LAST_FIRST: tl.constexpr):
    """The program's head of a batch, and the first of its rows, of `length` (int64 both)."""
    # All on the one axis of a grid that is not limited to 65,535.
    pair, first = whole_and_first(tl.program_id(0).to(tl.int64), length, ROWS)
    if LAST_FIRST:  # under the causal rule the last rows take longest
        first = (tl.cdiv(length, ROWS) - 1) * ROWS - first
    return pair, first


@triton.jit
def head_of(pointer, pair, heads, strides):
    """Where the first row of a pair of batch and head lies."""
    return pointer + pair // heads * strides[0] + pair % heads * strides[1]


@triton.jit
def load_rows(
    pointer,
    first,
    stride,
    count,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    DOT: tl.constexpr,
    INSIDE: tl.constexpr = False,
):
    """[ROWS, WIDTH] from row `first` of a matrix [count, SIZE], zero beyond it.

    INSIDE: no row is beyond it.
    """
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    # Not every loop counts in int64; in the interpreter none does.
    place = pointer + tl.cast(first, tl.int64) * stride + (rows.to(tl.int64) * stride + columns)
    if INSIDE and SIZE == WIDTH:
        block = tl.load(place)
    else:
        mask = columns < SIZE
        if not INSIDE:
            mask = mask & (rows < count - first)
        block = tl.load(place, mask=mask, other=0.0)
    return block.to(DOT)


@triton.jit
def store_rows(
    pointer,
    first,
    stride,
    count,
    block,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The reverse."""
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    place = pointer + first * stride + (rows.to(tl.int64) * stride + columns)
    mask = (rows < count - first) & (columns < SIZE)
    tl.store(place, block.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def masks(
    mask,
    i,
    j,
    strides,
    queries,
    keys,
    MASK: tl.constexpr,
    EVERY_QUERY: tl.constexpr,
    EVERY_KEY: tl.constexpr,
    CAUSAL: tl.constexpr,
    WHOLE: tl.constexpr,
    MATH: tl.constexpr,
):
    """Of a tile of queries i and keys j: what may attend, and what is added.

    EVERY_QUERY: whether the mask is one for all queries; EVERY_KEY: for all keys.
    WHOLE: every key of it exists, and the causal rule lets every query attend to it. Queries that
    do not exist count as the last one: the callers give them no weight.
    """
    allowed, added = True, 0.0
    if not WHOLE:
        allowed = j < keys
        if CAUSAL:
            allowed = allowed & (j <= i)
    if MASK != NONE:
        # Of what is broadcast a tile loads one row or column (a column, if both): fewer loads, and
        # fewer places to hold.
        place = mask
        if EVERY_KEY or not EVERY_QUERY:
            place += tl.minimum(i, queries - 1).to(tl.int64) * strides[2]
        if not EVERY_KEY:
            place += j.to(tl.int64) * strides[3]
        exists = True if WHOLE or EVERY_KEY else j < keys
        found = tl.load(place) if exists is True else tl.load(place, mask=exists, other=0)
        if MASK == ADDITIVE:
            added = found.to(MATH)
            found = added != float("-inf")  # NaN stays
        else:
            found = found != 0
        allowed = found if WHOLE else allowed & found
    return allowed, added


@triton.jit
def scores(a, b, factor, added, MASK: tl.constexpr, MATH: tl.constexpr):
    """Products of rows; with an additive mask times `factor`, with it."""
    found = tl.dot(a, tl.trans(b), input_precision="ieee", out_dtype=MATH)
    return found * factor + added if MASK == ADDITIVE else found


@triton.jit
def score_factor(scale, MASK: tl.constexpr, MATH: tl.constexpr):
    """Of products; by log2(e) too, unless a mask is added, which may be too large for that."""
    return in_math(scale if MASK == ADDITIVE else scale * LOG2_E, MATH)


@triton.jit
def powers(s, base, MASK: tl.constexpr):
    """e to the power of s - base, both by log2(e) already unless a mask is added."""
    return tl.exp(s - base) if MASK == ADDITIVE else tl.exp2(s - base)


@triton.jit
def in_math(number, MATH: tl.constexpr):
    """[1], of a float64 argument."""
    return (tl.full((1,), 1, MATH) * number).to(MATH)


@triton.jit
def kept_weights(seed, pair, i, first_key, dropped, ROWS: tl.constexpr, KEYS: tl.constexpr):
    """Which weights of a tile [ROWS, KEYS] dropout keeps, as `fastrnn._attention.reference` does.

    Word j % 4 of Philox at the counter (j // 4, pair, i, 0) has to be at least `dropped`.
    """
    zero = tl.zeros((ROWS, KEYS // 4), tl.int32)
    quad = (first_key // 4 + tl.arange(0, KEYS // 4)[None, :] + zero).to(tl.int32)
    row, of = (i + zero).to(tl.int32), (pair + zero).to(tl.int32)
    a, b, c, d = tl.philox(tl.load(seed), quad, of, row, zero)
    # The last axis of a join is the newest: four words side by side.
    words = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(words, (ROWS, KEYS)).to(tl.int64) >= dropped


@triton.jit
def weight_gradients(
    a,
    b,
    c,
    d,
    logsumexp,
    delta,
    factor,
    allowed,
    added,
    kept,
    share,
    MASK: tl.constexpr,
    WHOLE: tl.constexpr,
    MATH: tl.constexpr,
):
    """Of a tile: the weights that values were summed with, and the gradients of the scores.

    a, b, c, d: queries, keys, the output's gradients, values for a tile [ROWS, KEYS]; keys,
    queries, values, gradients for a tile [KEYS, ROWS]. logsumexp, scaled as `powers` takes it, and
    delta, the rows' products of output and gradient, lie along the tile's rows.
    """
    s = scores(a, b, factor, added, MASK, MATH)
    w = powers(s * (1.0 if MASK == ADDITIVE else factor), logsumexp, MASK)
    if MASK == ADDITIVE:  # a large logsumexp may be rounded by more than its row's weights can be
        w = tl.where(w > 1, 1.0, w)  # NaN stays
    if MASK != NONE or not WHOLE:
        w = tl.where(allowed, w, 0.0)
    used = w
    to_w = tl.dot(c, tl.trans(d), input_precision="ieee", out_dtype=MATH)
    if kept is not None:
        used, to_w = tl.where(kept, w * share, 0.0), tl.where(kept, to_w * share, 0.0)
    return used, w * (to_w - delta)
