"""What the attention kernels share: tiles of rows, of scores after the masks, and of dropout."""

from __future__ import annotations

import triton
import triton.language as tl

# What MASK means to a kernel.
BOOLEAN, ADDITIVE = tl.constexpr(1), tl.constexpr(2)
# Arguments of the kernels whose values are not worth a compilation each.
NUMBERS = ("queries", "keys", "dropped")


@triton.jit
def pair_and_first(length, ROWS: tl.constexpr):
    """The program's head of a batch, and the first of its rows, of `length` (int64 both)."""
    # All on the one axis of a grid that is not limited to 65,535.
    blocks = tl.cdiv(length, ROWS)
    program = tl.program_id(0).to(tl.int64)
    return program // blocks, program % blocks * ROWS


@triton.jit
def load_rows(pointer, rows, stride, count, width, WIDTH: tl.constexpr, DOT: tl.constexpr):
    """[ROWS, WIDTH] of a matrix [count, width], zero beyond it."""
    columns = tl.arange(0, WIDTH)[None, :]
    mask = (rows[:, None] < count) & (columns < width)
    return tl.load(pointer + rows[:, None] * stride + columns, mask=mask, other=0.0).to(DOT)


@triton.jit
def store_rows(pointer, rows, stride, count, width, block, WIDTH: tl.constexpr):
    """The reverse."""
    columns = tl.arange(0, WIDTH)[None, :]
    mask = (rows[:, None] < count) & (columns < width)
    value = block.to(pointer.dtype.element_ty)
    tl.store(pointer + rows[:, None] * stride + columns, value, mask=mask)


@triton.jit
def masks(
    mask,
    i,
    j,
    stride_i,
    stride_j,
    queries,
    keys,
    MASK: tl.constexpr,
    CAUSAL: tl.constexpr,
    MATH: tl.constexpr,
):
    """Of a tile of queries i and keys j: what may attend, and what is added to the scores."""
    allowed = (i[:, None] < queries) & (j[None, :] < keys)
    added = 0.0
    if mask is not None:
        place = mask + i[:, None] * stride_i + j[None, :] * stride_j
        if MASK == BOOLEAN:
            allowed = allowed & (tl.load(place, mask=allowed, other=0) != 0)
        else:
            added = tl.load(place, mask=allowed, other=float("-inf")).to(MATH)
            allowed = allowed & (added != float("-inf"))  # NaN stays
    if CAUSAL:
        allowed = allowed & (j[None, :] <= i[:, None])
    return allowed, added


@triton.jit
def scores(
    query,
    key,
    scale,
    allowed,
    added,
    MASK: tl.constexpr,
    MATH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scaled products with the masks, -inf where a query may not attend to a key."""
    found = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=MATH)
    found = found * (scale * tl.full((1, 1), 1, MATH)).to(MATH)
    if MASK == ADDITIVE:
        found = found + added
    return tl.where(allowed, found, float("-inf"))


@triton.jit
def kept_weights(seed, pair, i, first_key, dropped, ROWS: tl.constexpr, KEYS: tl.constexpr):
    """Which weights of a tile dropout keeps, as `fastrnn._attention.reference` draws them.

    Word j % 4 of Philox at the counter (j // 4, pair, i, 0) has to be at least `dropped`.
    """
    zero = tl.zeros((ROWS, KEYS // 4), tl.int32)
    quad = (first_key // 4 + tl.arange(0, KEYS // 4)[None, :] + zero).to(tl.int32)
    row, of = (i[:, None] + zero).to(tl.int32), (pair + zero).to(tl.int32)
    a, b, c, d = tl.philox(tl.load(seed), quad, of, row, zero)
    # The last axis of a join is the newest: four words side by side.
    words = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(words, (ROWS, KEYS)).to(tl.int64) >= dropped


@triton.jit
def weight_gradients(
    q,
    k,
    v,
    grad,
    logsumexp,
    delta,
    scale,
    allowed,
    added,
    seed,
    pair,
    i,
    first_key,
    dropped,
    share,
    MASK: tl.constexpr,
    MATH: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Of a tile: the weights that values were summed with, and the gradients of the scores.

    grad: [ROWS, D], of the output; delta: [ROWS], its products with the output.
    """
    s = scores(q, k, scale, allowed, added, MASK, MATH, PRECISION)
    w = tl.exp(s - logsumexp[:, None])
    used = w
    to_w = tl.dot(grad, tl.trans(v), input_precision=PRECISION, out_dtype=MATH)
    if seed is not None:
        kept = kept_weights(seed, pair, i, first_key, dropped, ROWS, KEYS)
        more = (share * tl.full((1, 1), 1, MATH)).to(MATH)
        used, to_w = tl.where(kept, w * more, 0.0), tl.where(kept, to_w * more, 0.0)
    return used, w * (to_w - delta[:, None])
