"""What the kernels share: blocks of gates, states and slots in memory, steps, resets, zoneout.

A kernel works on blocks [rows of sequences, units]; a cell's gates, states or slots are a tuple
of them. Blocks come from memory in its dtype, `as_math` makes them what is computed with.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Arguments of the kernels whose values are not worth a compilation each: they change from call to
# call, or from step to step.
NUMBERS = (
    *("steps", "step", "batch", "rows_in_all", "kept_0", "kept_1", "count", "first_row"),
    *("slot_row", "before_row", "before_count", "after_row", "after_count"),
)
# What ZONEOUT means to a kernel.
EXPECTED, DRAWN = tl.constexpr(1), tl.constexpr(2)


@triton.jit
def block_indices(ROWS: tl.constexpr, UNITS: tl.constexpr):
    """The program's sequences [ROWS, 1] (int64) and units [1, UNITS]."""
    b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return b[:, None], (tl.program_id(1) * UNITS + tl.arange(0, UNITS))[None, :]


@triton.jit
def load_blocks(pointer, offsets, stride, mask, COUNT: tl.constexpr):
    """COUNT blocks that lie `stride` elements apart."""
    blocks = ()
    for k in tl.static_range(COUNT):
        blocks = blocks + (tl.load(pointer + k * stride + offsets, mask=mask, other=0.0),)
    return blocks


@triton.jit
def store_blocks(pointer, offsets, stride, mask, blocks, FIRST: tl.constexpr, END: tl.constexpr):
    """Blocks FIRST to END, the first of them at `pointer`, then `stride` elements apart."""
    for k in tl.static_range(FIRST, END):
        value = blocks[k].to(pointer.dtype.element_ty)
        tl.store(pointer + (k - FIRST) * stride + offsets, value, mask=mask)


@triton.jit
def as_math(blocks, FIRST: tl.constexpr, END: tl.constexpr, MATH: tl.constexpr):
    """Blocks FIRST to END in the dtype MATH."""
    found = ()
    for k in tl.static_range(FIRST, END):
        found = found + (blocks[k].to(MATH),)
    return found


@triton.jit
def select(condition, chosen, others, COUNT: tl.constexpr):
    """Blocks of `chosen` where the condition holds, of `others` elsewhere."""
    found = ()
    for k in tl.static_range(COUNT):
        found = found + (tl.where(condition, chosen[k], others[k]),)
    return found


@triton.jit
def zeros_like(blocks, COUNT: tl.constexpr):
    found = ()
    for k in tl.static_range(COUNT):
        found = found + (tl.zeros_like(blocks[k]),)
    return found


@triton.jit
def add(blocks, others, COUNT: tl.constexpr):
    found = ()
    for k in tl.static_range(COUNT):
        found = found + (blocks[k] + others[k],)
    return found


@triton.jit
def step_rows(i, steps, batch, starts, REVERSE: tl.constexpr):
    """Of the i-th step that is taken: its number, first packed row, and number of sequences.

    starts: int64 [T+1], the first row of each step; None: all steps have `batch` rows.
    """
    step = steps - 1 - i if REVERSE else i
    if starts is None:
        first, count = step * batch, batch
    else:
        first = tl.load(starts + step)
        count = tl.load(starts + step + 1) - first
    return step, first, count


@triton.jit
def states_at(output, cells, offsets, stride, mask, STATES: tl.constexpr):
    """The states that the forward pass kept, at rows of [N, H]."""
    blocks = load_blocks(output, offsets, 0, mask, 1)
    return blocks + load_blocks(cells, offsets, stride, mask, STATES - 1)


@triton.jit
def previous(
    state,
    output,
    cells,
    b,
    u,
    mask,
    rows,
    went_on,
    batch,
    rows_in_all,
    hidden,
    STATES: tl.constexpr,
):
    """The states that a step found: those of the step before at `rows`, or the first ones."""
    stride = rows_in_all * hidden
    before = states_at(output, cells, rows * hidden + u, stride, mask & went_on, STATES)
    began = load_blocks(state, b * hidden + u, batch * hidden, mask & (went_on == 0), STATES)
    return select(went_on, before, began, STATES)


@triton.jit
def keeps(kept, seed, sequence, step, unit, STATE: tl.constexpr):
    """Where a state's units keep their value, drawn as `fastrnn.regularisers` does.

    Word u of a row is word u % 4 of Philox at the counter (u // 4, sequence, step, state); it is
    compared with the probability in units of 2**-32.
    """
    a, b, c, d = tl.philox(seed, unit // 4, sequence, step, STATE)
    lane = unit % 4
    word = tl.where(lane < 2, tl.where(lane == 0, a, b), tl.where(lane == 2, c, d))
    return word.to(tl.int64) < ((kept.to(tl.int64) + (1 << 20)) >> 21)


@triton.jit
def zoneout(
    prev, next, kept, seed, sequence, step, unit, STATES: tl.constexpr, ZONEOUT: tl.constexpr
):
    """The states after a step: `next` but for the units, or the share, of `prev` that is kept.

    kept: for each state the probability in units of 2**-53.
    """
    found = ()
    for s in tl.static_range(STATES):
        if ZONEOUT == DRAWN:
            block = tl.where(keeps(kept[s], seed, sequence, step, unit, s), prev[s], next[s])
        else:
            rate = kept[s].to(next[s].dtype) * 2.0**-53
            block = rate * prev[s] + (1 - rate) * next[s]
        found = found + (block,)
    return found


@triton.jit
def sequence_numbers(b, batch, sequences):
    """What zoneout's masks know the sequences by: their place in the batch, or as given."""
    if sequences is None:
        numbers = b.to(tl.int32)
    else:
        numbers = tl.load(sequences + b, mask=b < batch, other=0).to(tl.int32)
    return numbers


@triton.jit
def load_weights(
    weight,  # [G*H, H]
    hidden,
    FIRST: tl.constexpr,
    END: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DOT: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Gates FIRST to END as second operands of a product, [UNITS, UNITS] each, zero beyond H."""
    k = tl.arange(0, UNITS)[:, None]
    n = tl.arange(0, UNITS)[None, :]
    found = ()
    for g in tl.static_range(FIRST, END):
        at = (g * hidden + n) * hidden + k if TRANSPOSED else (g * hidden + k) * hidden + n
        block = tl.load(weight + at, mask=(k < hidden) & (n < hidden), other=0.0)
        found = found + (block.to(DOT),)
    return found
