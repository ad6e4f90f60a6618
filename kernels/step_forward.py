"""One step's gate maths behind torch's product, any shape.

A program has some sequences and some units. The states are carried from step to step in place: no
element is touched by two programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import (
    DRAWN,
    NUMBERS,
    add,
    as_math,
    block_indices,
    load_blocks,
    select,
    sequence_numbers,
    store_blocks,
    zeros_like,
    zoneout,
)


@triton.jit(do_not_specialize=NUMBERS)
def forward_step(
    x_proj,  # [N, G*H]
    h_proj,  # [B, (G-FIRST)*H], the product alone
    bias_hh,  # [G*H] or None
    carry,  # [S, B, H], in the dtype of the maths
    operand,  # [B, H], the next product's; None where it is carry
    output,  # [N, H]
    cells,  # [S-1, N, H] or None
    reserve,  # [N, R*H], with zoneout [N, (R+S)*H]; or None
    resets,  # uint8 [N] or None
    seed,  # int64 [1] or None
    sequences,  # int64 [B] or None
    kept_0: tl.int64,
    kept_1: tl.int64,
    step: tl.int32,
    first_row: tl.int64,
    slot_row: tl.int64,  # the step's first row in reserve
    count: tl.int64,
    batch: tl.int64,
    rows_in_all: tl.int64,
    hidden,
    FORWARD: tl.constexpr,
    FIRST: tl.constexpr,  # the gates that `operand_step` has done, each with a slot
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    SLOTS: tl.constexpr,
    ZONEOUT: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    MATH: tl.constexpr = carry.dtype.element_ty
    ALL_SLOTS: tl.constexpr = SLOTS + (STATES if ZONEOUT else 0)
    OWN: tl.constexpr = GATES - FIRST
    b, u = block_indices(ROWS, UNITS)
    mask = (b < count) & (u < hidden)
    rows = first_row + b
    x_at = rows * (GATES * hidden) + FIRST * hidden + u
    x = as_math(load_blocks(x_proj, x_at, hidden, mask, OWN), 0, OWN, MATH)
    h = load_blocks(h_proj, b * (OWN * hidden) + u, hidden, mask, OWN)
    h = as_math(h, 0, OWN, MATH)
    prev = load_blocks(carry, b * hidden + u, batch * hidden, mask, STATES)
    if resets is not None:
        reset = tl.load(resets + rows, mask=b < count, other=0) != 0
        h = select(reset, zeros_like(h, OWN), h, OWN)
        prev = select(reset, zeros_like(prev, STATES), prev, STATES)
    if bias_hh is not None:
        bias = load_blocks(bias_hh, FIRST * hidden + u, hidden, u < hidden, OWN)
        h = add(h, as_math(bias, 0, OWN, MATH), OWN)
    slot_at = (slot_row + b) * (ALL_SLOTS * hidden) + u
    if FIRST == 0:
        next, slots = FORWARD(x, h, prev)
    else:
        slots = as_math(load_blocks(reserve, slot_at, hidden, mask, FIRST), 0, FIRST, MATH)
        next, slots = FORWARD(x, h, prev, slots)
    if ZONEOUT:
        slots = slots + next
        key, number = 0, 0
        if ZONEOUT == DRAWN:
            key, number = tl.load(seed), sequence_numbers(b, batch, sequences)
        kept = (kept_0, kept_1)
        next = zoneout(prev, next, kept, key, number, step, u, STATES, ZONEOUT)
    store_blocks(output, rows * hidden + u, 0, mask, next, 0, 1)
    store_blocks(carry, b * hidden + u, batch * hidden, mask, next, 0, STATES)
    if operand is not None:
        store_blocks(operand, b * hidden + u, 0, mask, next, 0, 1)
    if cells is not None:
        store_blocks(cells, rows * hidden + u, rows_in_all * hidden, mask, next, 1, STATES)
    if reserve is not None:
        store_blocks(reserve, slot_at, hidden, mask, slots, 0, ALL_SLOTS)


@triton.jit(do_not_specialize=NUMBERS)
def operand_step(
    x_proj,  # [N, G*H]
    h_proj,  # [B, FIRST*H], the product alone
    bias_hh,  # [G*H] or None
    carry,  # [S, B, H]
    operand,  # [B, H], the second product's
    reserve,  # [N, ALL_SLOTS*H]
    resets,  # uint8 [N] or None
    first_row: tl.int64,
    slot_row: tl.int64,
    count: tl.int64,
    batch: tl.int64,
    hidden,
    OPERAND: tl.constexpr,
    FIRST: tl.constexpr,
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    ALL_SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """The gates before the second product, and its operand."""
    MATH: tl.constexpr = carry.dtype.element_ty
    b, u = block_indices(ROWS, UNITS)
    mask = (b < count) & (u < hidden)
    rows = first_row + b
    x = load_blocks(x_proj, rows * (GATES * hidden) + u, hidden, mask, FIRST)
    x = as_math(x, 0, FIRST, MATH)
    h = load_blocks(h_proj, b * (FIRST * hidden) + u, hidden, mask, FIRST)
    h = as_math(h, 0, FIRST, MATH)
    prev = load_blocks(carry, b * hidden + u, batch * hidden, mask, STATES)
    if resets is not None:
        reset = tl.load(resets + rows, mask=b < count, other=0) != 0
        h = select(reset, zeros_like(h, FIRST), h, FIRST)
        prev = select(reset, zeros_like(prev, STATES), prev, STATES)
    if bias_hh is not None:
        bias = load_blocks(bias_hh, u, hidden, u < hidden, FIRST)
        h = add(h, as_math(bias, 0, FIRST, MATH), FIRST)
    product, slots = OPERAND(x, h, prev)
    store_blocks(operand, b * hidden + u, 0, mask, (product,), 0, 1)
    slot_at = (slot_row + b) * (ALL_SLOTS * hidden) + u
    store_blocks(reserve, slot_at, hidden, mask, slots, 0, FIRST)
