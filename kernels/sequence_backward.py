"""A whole sequence in one kernel, backward: `sequence_forward`'s steps from the last to the first.

The weights' gradients are products after the loop, of what it stores.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import (
    DRAWN,
    NUMBERS,
    add,
    as_math,
    load_blocks,
    load_weights,
    previous,
    select,
    sequence_numbers,
    states_at,
    step_rows,
    store_blocks,
    zeros_like,
    zoneout,
)


@triton.jit
def product(
    grads,
    weights,
    FIRST: tl.constexpr,
    END: tl.constexpr,
    STORED: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What gates FIRST to END send back through their weights."""
    total = tl.zeros(grads[0].shape, tl.float32)
    for g in tl.static_range(FIRST, END):
        total = tl.dot(grads[g].to(STORED).to(DOT), weights[g], total, input_precision=PRECISION)
    return total


@triton.jit
def ask_backward(
    i,
    steps,
    batch,
    rows_in_all,
    hidden,
    b,
    u,
    starts,
    state,
    resets,
    output,
    cells,
    reserve,
    grad_output,
    grad_cells,
    STATES: tl.constexpr,
    SLOTS: tl.constexpr,
    REVERSE: tl.constexpr,
    ZONEOUT: tl.constexpr,
):
    """What the i-th step's gradient reads: slots, states after and before it, gradients, reset."""
    i = tl.maximum(i, 0)
    ALL_SLOTS: tl.constexpr = SLOTS + (STATES if ZONEOUT else 0)
    step, first, count = step_rows(i, steps, batch, starts, REVERSE)
    rows = first + b
    here, at = (b < count) & (u < hidden), rows * hidden + u
    stride = rows_in_all * hidden
    blocks = load_blocks(reserve, rows * (ALL_SLOTS * hidden) + u, hidden, here, ALL_SLOTS)
    if not ZONEOUT:  # with it, the states that the step came to are in the reserve
        blocks = blocks + states_at(output, cells, at, stride, here, STATES)
    _, row, size = step_rows(tl.maximum(i - 1, 0), steps, batch, starts, REVERSE)
    earlier = row + b, b < tl.where(i > 0, size, 0)
    blocks = blocks + previous(
        state, output, cells, b, u, here, *earlier, batch, rows_in_all, hidden, STATES
    )
    if grad_output is not None:
        blocks = blocks + load_blocks(grad_output, at, 0, here, 1)
    if grad_cells is not None:
        blocks = blocks + load_blocks(grad_cells, at, stride, here, STATES - 1)
    if resets is not None:
        blocks = blocks + (tl.load(resets + rows, mask=b < count, other=0) != 0,)
    return step, rows, here, blocks


@triton.jit(do_not_specialize=NUMBERS)
def backward_sequence(
    weight_hh,  # [G*H, H]
    state,  # [S, B, H]
    starts,  # int64 [T+1] or None
    resets,  # uint8 [N] or None
    seed,  # int64 [1] or None
    sequences,  # int64 [B] or None
    output,  # [N, H]
    cells,  # [S-1, N, H]
    reserve,  # [N, R*H], with zoneout [N, (R+S)*H]
    grad_output,  # [N, H] or None
    grad_state_n,  # [S, B, H] or None
    grad_cells,  # [S-1, N, H] or None
    grad_x,  # [N, G*H]
    grad_h,  # [N, G*H], or None where it is grad_x
    grad_state,  # [S, B, H]
    kept_0: tl.int64,
    kept_1: tl.int64,
    steps: tl.int32,
    batch: tl.int64,
    rows_in_all: tl.int64,
    hidden,
    BACKWARD: tl.constexpr,
    OPERAND_BACKWARD: tl.constexpr,
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
    MATH: tl.constexpr = tl.float32
    STORED: tl.constexpr = output.dtype.element_ty
    BEFORE: tl.constexpr = SLOTS + STATES
    GRADS: tl.constexpr = BEFORE + STATES
    GRAD_CELLS: tl.constexpr = GRADS if grad_output is None else GRADS + 1
    b = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    u = tl.arange(0, UNITS)[None, :]
    inside = (b < batch) & (u < hidden)
    weights = load_weights(weight_hh, hidden, 0, GATES, False, DOT, UNITS)
    key, number = 0, 0
    if ZONEOUT == DRAWN:
        key, number = tl.load(seed), sequence_numbers(b, batch, sequences)
    kept = (kept_0, kept_1)
    grad = load_blocks(grad_state_n, b * hidden + u, batch * hidden, inside, STATES)
    grad = as_math(grad, 0, STATES, MATH)
    zeros = zeros_like(grad, STATES)
    sizes = steps, batch, rows_in_all, hidden, b, u
    read = starts, state, resets, output, cells, reserve, grad_output, grad_cells
    step, rows, here, asked = ask_backward(
        steps - 1, *sizes, *read, STATES, SLOTS, REVERSE, ZONEOUT
    )
    for k in range(steps):
        now, at, mask, got = step, rows, here, asked
        step, rows, here, asked = ask_backward(
            steps - 2 - k, *sizes, *read, STATES, SLOTS, REVERSE, ZONEOUT
        )
        slots = as_math(got, 0, SLOTS, MATH)
        next = as_math(got, SLOTS, BEFORE, MATH)
        prev = as_math(got, BEFORE, GRADS, MATH)
        if resets is not None:
            prev = select(got[len(got) - 1], zeros, prev, STATES)
        total = grad
        if grad_output is not None:
            total = (total[0] + got[GRADS].to(MATH),) + total[1:]
        if grad_cells is not None:
            more = as_math(got, GRAD_CELLS, GRAD_CELLS + STATES - 1, MATH)
            total = total[:1] + add(total[1:], more, STATES - 1)
        if ZONEOUT:
            around = zoneout(total, zeros, kept, key, number, now, u, STATES, ZONEOUT)
            total = zoneout(zeros, total, kept, key, number, now, u, STATES, ZONEOUT)
        to_x, to_h, back = BACKWARD(slots, prev, next, total)
        if OPERAND_GATES != 0:
            grad_operand = product(to_h, weights, OPERAND_GATES, GATES, STORED, DOT, PRECISION)
            first, direct = OPERAND_BACKWARD(slots, prev, grad_operand, back[0])
            to_x = (first,) + to_x[1:]
            to_h, back = to_x, (direct,) + back[1:]
            through = product(to_h, weights, 0, OPERAND_GATES, STORED, DOT, PRECISION)
        else:
            through = product(to_h, weights, 0, GATES, STORED, DOT, PRECISION)
        back = (back[0] + through,) + back[1:]
        if ZONEOUT:
            back = add(back, around, STATES)
        if resets is not None:
            back = select(got[len(got) - 1], zeros, back, STATES)
        gate_at = at * (GATES * hidden) + u
        store_blocks(grad_x, gate_at, hidden, mask, to_x, 0, GATES)
        if grad_h is not None:
            store_blocks(grad_h, gate_at, hidden, mask, to_h, 0, GATES)
        grad = back if starts is None else select(mask, back, grad, STATES)
    store_blocks(grad_state, b * hidden + u, batch * hidden, inside, grad, 0, STATES)
