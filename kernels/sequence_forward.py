"""A whole sequence in one kernel, forward, with W_hh on chip.

A program has some sequences to itself and walks their steps; it holds their states in registers and
W_hh in registers and shared memory. What a step reads from memory is asked for a step ahead, so
that the wait for it is behind the products.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import (
    DRAWN,
    NUMBERS,
    as_math,
    load_blocks,
    load_weights,
    select,
    sequence_numbers,
    step_rows,
    store_blocks,
    zeros_like,
    zoneout,
)


@triton.jit
def products(
    block,
    weights,
    bias,
    FIRST: tl.constexpr,
    END: tl.constexpr,
    STORED: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A state's (or operand's) shares of gates FIRST to END, with their biases."""
    operand = block.to(STORED).to(DOT)
    found = ()
    for g in tl.static_range(FIRST, END):
        share = tl.dot(operand, weights[g], input_precision=PRECISION, out_dtype=tl.float32)
        found = found + (share if bias is None else share + bias[g],)
    return found


@triton.jit
def ask_forward(
    i,
    steps,
    batch,
    hidden,
    b,
    u,
    starts,
    x_proj,
    resets,
    GATES: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """What the i-th step reads: the gates' shares from the input, and whether to reset."""
    i = tl.minimum(i, steps - 1)
    step, first, count = step_rows(i, steps, batch, starts, REVERSE)
    rows = first + b
    mask = (b < count) & (u < hidden)
    blocks = load_blocks(x_proj, rows * (GATES * hidden) + u, hidden, mask, GATES)
    if resets is not None:
        blocks = blocks + (tl.load(resets + rows, mask=b < count, other=0) != 0,)
    return step, rows, mask, blocks


@triton.jit(do_not_specialize=NUMBERS)
def forward_sequence(
    x_proj,  # [N, G*H]
    weight_hh,  # [G*H, H]
    bias_hh,  # [G*H] or None
    state,  # [S, B, H]
    starts,  # int64 [T+1] or None
    resets,  # uint8 [N] or None
    seed,  # int64 [1] or None
    sequences,  # int64 [B] or None
    output,  # [N, H]
    state_n,  # [S, B, H]
    cells,  # [S-1, N, H] or None
    reserve,  # [N, R*H], with zoneout [N, (R+S)*H]; or None
    kept_0: tl.int64,
    kept_1: tl.int64,
    steps: tl.int32,
    batch: tl.int64,
    rows_in_all: tl.int64,
    hidden,
    FORWARD: tl.constexpr,
    OPERAND: tl.constexpr,
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    SLOTS: tl.constexpr,
    OPERAND_GATES: tl.constexpr,
    REVERSE: tl.constexpr,
    ZONEOUT: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    STORED: tl.constexpr = output.dtype.element_ty
    ALL_SLOTS: tl.constexpr = SLOTS + (STATES if ZONEOUT else 0)
    b = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    u = tl.arange(0, UNITS)[None, :]
    inside = (b < batch) & (u < hidden)
    weights = load_weights(weight_hh, hidden, 0, GATES, True, DOT, UNITS)
    bias = None
    if bias_hh is not None:
        bias = as_math(load_blocks(bias_hh, u, hidden, u < hidden, GATES), 0, GATES, tl.float32)
    key, number = 0, 0
    if ZONEOUT == DRAWN:
        key, number = tl.load(seed), sequence_numbers(b, batch, sequences)
    kept = (kept_0, kept_1)
    prev = load_blocks(state, b * hidden + u, batch * hidden, inside, STATES)
    prev = as_math(prev, 0, STATES, tl.float32)
    read = steps, batch, hidden, b, u, starts, x_proj, resets
    step, rows, mask, asked = ask_forward(0, *read, GATES, REVERSE)
    for i in range(steps):
        now, at, here, got = step, rows, mask, asked
        step, rows, mask, asked = ask_forward(i + 1, *read, GATES, REVERSE)
        x = as_math(got, 0, GATES, tl.float32)
        before = prev
        if resets is not None:
            before = select(got[GATES], zeros_like(prev, STATES), prev, STATES)
        if OPERAND_GATES == 0:
            h = products(before[0], weights, bias, 0, GATES, STORED, DOT, PRECISION)
            next, slots = FORWARD(x, h, before)
        else:
            h = products(before[0], weights, bias, 0, OPERAND_GATES, STORED, DOT, PRECISION)
            operand, slots = OPERAND(x[:OPERAND_GATES], h, before)
            h = products(operand, weights, bias, OPERAND_GATES, GATES, STORED, DOT, PRECISION)
            next, slots = FORWARD(x[OPERAND_GATES:], h, before, slots)
        if ZONEOUT:
            slots = slots + next
            next = zoneout(before, next, kept, key, number, now, u, STATES, ZONEOUT)
        store_blocks(output, at * hidden + u, 0, here, next, 0, 1)
        if reserve is not None:
            cell_at = at * hidden + u
            store_blocks(cells, cell_at, rows_in_all * hidden, here, next, 1, STATES)
            slot_at = at * (ALL_SLOTS * hidden) + u
            store_blocks(reserve, slot_at, hidden, here, slots, 0, ALL_SLOTS)
        prev = next if starts is None else select(here, next, prev, STATES)
    store_blocks(state_n, b * hidden + u, batch * hidden, inside, prev, 0, STATES)
