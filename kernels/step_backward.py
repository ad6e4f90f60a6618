"""The gradient of one step's gate maths, in front of torch's product: `step_forward`'s, backward.

What flows from step to step besides that product is carried in place.
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
    previous,
    select,
    sequence_numbers,
    states_at,
    store_blocks,
    zeros_like,
    zoneout,
)


@triton.jit(do_not_specialize=NUMBERS)
def backward_step(
    state,  # [S, B, H]
    output,  # [N, H]
    cells,  # [S-1, N, H]
    reserve,  # [N, R*H], with zoneout [N, (R+S)*H]
    grad_output,  # [N, H] or None
    grad_cells,  # [S-1, N, H] or None
    carry,  # [S, B, H], gradients, in the dtype of the maths
    through,  # [B, H], what the step after sent back through its product
    grad_x,  # [N, G*H]
    grad_h,  # [N, G*H], or None where it is grad_x
    resets,  # uint8 [N] or None
    seed,  # int64 [1] or None
    sequences,  # int64 [B] or None
    kept_0: tl.int64,
    kept_1: tl.int64,
    step: tl.int32,
    first_row: tl.int64,
    count: tl.int64,
    before_row: tl.int64,  # first row of the step before
    before_count: tl.int64,  # how many of its sequences there are; 0: this is the first step
    after_row: tl.int64,  # first row of the step after
    after_count: tl.int64,  # 0: this is the last step
    batch: tl.int64,
    rows_in_all: tl.int64,
    hidden,
    BACKWARD: tl.constexpr,
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    SLOTS: tl.constexpr,
    ZONEOUT: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    MATH: tl.constexpr = carry.dtype.element_ty
    ALL_SLOTS: tl.constexpr = SLOTS + (STATES if ZONEOUT else 0)
    b, u = block_indices(ROWS, UNITS)
    mask, stride = (b < count) & (u < hidden), rows_in_all * hidden
    rows, at = first_row + b, (first_row + b) * hidden + u

    # The step after may have more sequences than this one: what it sent back is theirs to keep.
    returned = (b < after_count) & (u < hidden)
    if resets is not None:
        stopped = tl.load(resets + after_row + b, mask=b < after_count, other=1) != 0
        returned = returned & (stopped == 0)
    grad = load_blocks(carry, b * hidden + u, batch * hidden, (b < batch) & (u < hidden), STATES)
    sent = tl.load(through + b * hidden + u, mask=returned, other=0.0).to(MATH)
    grad = (grad[0] + sent,) + grad[1:]

    slots = load_blocks(reserve, rows * (ALL_SLOTS * hidden) + u, hidden, mask, ALL_SLOTS)
    if ZONEOUT:
        next = as_math(slots, SLOTS, ALL_SLOTS, MATH)
    else:
        next = as_math(states_at(output, cells, at, stride, mask, STATES), 0, STATES, MATH)
    earlier = before_row + b, b < before_count
    prev = previous(state, output, cells, b, u, mask, *earlier, batch, rows_in_all, hidden, STATES)
    prev = as_math(prev, 0, STATES, MATH)
    zeros = zeros_like(grad, STATES)
    if resets is not None:
        reset = tl.load(resets + rows, mask=b < count, other=0) != 0
        prev = select(reset, zeros, prev, STATES)

    total = grad
    if grad_output is not None:
        total = (total[0] + tl.load(grad_output + at, mask=mask, other=0.0).to(MATH),) + total[1:]
    if grad_cells is not None:
        more = load_blocks(grad_cells, at, stride, mask, STATES - 1)
        total = total[:1] + add(total[1:], as_math(more, 0, STATES - 1, MATH), STATES - 1)
    if ZONEOUT:
        key, number = 0, 0
        if ZONEOUT == DRAWN:
            key, number = tl.load(seed), sequence_numbers(b, batch, sequences)
        kept = (kept_0, kept_1)
        around = zoneout(total, zeros, kept, key, number, step, u, STATES, ZONEOUT)
        total = zoneout(zeros, total, kept, key, number, step, u, STATES, ZONEOUT)
    to_x, to_h, back = BACKWARD(as_math(slots, 0, SLOTS, MATH), prev, next, total)
    if ZONEOUT:
        back = add(back, around, STATES)
    if resets is not None:
        back = select(reset, zeros, back, STATES)

    gate_at = rows * (GATES * hidden) + u
    store_blocks(grad_x, gate_at, hidden, mask, to_x, 0, GATES)
    if grad_h is not None:
        store_blocks(grad_h, gate_at, hidden, mask, to_h, 0, GATES)
    back = select(mask, back, grad, STATES)
    store_blocks(carry, b * hidden + u, batch * hidden, (b < batch) & (u < hidden), back, 0, STATES)


@triton.jit(do_not_specialize=NUMBERS)
def operand_backward_step(
    state,  # [S, B, H]
    output,  # [N, H]
    cells,  # [S-1, N, H]
    reserve,  # [N, ALL_SLOTS*H]
    grad_operand,  # [B, H]
    carry,  # [S, B, H], gradients
    grad_x,  # [N, G*H]
    resets,  # uint8 [N] or None
    first_row: tl.int64,
    count: tl.int64,
    before_row: tl.int64,
    before_count: tl.int64,
    batch: tl.int64,
    rows_in_all: tl.int64,
    hidden,
    OPERAND_BACKWARD: tl.constexpr,
    FIRST: tl.constexpr,
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    ALL_SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """The gradient of the gate that makes the second operand, and what goes to prev directly."""
    MATH: tl.constexpr = carry.dtype.element_ty
    b, u = block_indices(ROWS, UNITS)
    mask = (b < count) & (u < hidden)
    rows, at = first_row + b, b * hidden + u
    slots = load_blocks(reserve, rows * (ALL_SLOTS * hidden) + u, hidden, mask, FIRST)
    slots = as_math(slots, 0, FIRST, MATH)
    earlier = before_row + b, b < before_count
    prev = previous(state, output, cells, b, u, mask, *earlier, batch, rows_in_all, hidden, STATES)
    prev = as_math(prev, 0, STATES, MATH)
    grad = tl.load(grad_operand + at, mask=mask, other=0.0).to(MATH)
    if resets is not None:
        reset = tl.load(resets + rows, mask=b < count, other=0) != 0
        prev = select(reset, zeros_like(prev, STATES), prev, STATES)
    direct = tl.load(carry + at, mask=mask, other=0.0)
    to_x, back = OPERAND_BACKWARD(slots, prev, grad, direct)
    if resets is not None:
        back = tl.where(reset, 0.0, back)
    store_blocks(grad_x, rows * (GATES * hidden) + u, 0, mask, (to_x,), 0, 1)
    store_blocks(carry, at, 0, mask, (back,), 0, 1)
