"""Kernels around the cells' functions: blocks of 32 values from memory and back."""

from __future__ import annotations

import triton
import triton.language as tl

from fastrnn import _kernels

COUNT = 32
blocks = _kernels.module("blocks")
load_blocks, store_blocks = blocks.load_blocks, blocks.store_blocks


@triton.jit
def forward(
    x,  # [G, 32]
    h,
    prev,  # [S, 32]
    next,
    reserve,  # [R, 32]
    operand,  # [1, 32]
    FORWARD: tl.constexpr,
    OPERAND: tl.constexpr,
    FIRST: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    R: tl.constexpr,
):
    u = tl.arange(0, 32)
    every = u < 32
    xs, hs = load_blocks(x, u, 32, every, G), load_blocks(h, u, 32, every, G)
    before = load_blocks(prev, u, 32, every, S)
    if FIRST == 0:
        after, slots = FORWARD(xs, hs, before)
    else:
        product, slots = OPERAND(xs[:FIRST], hs[:FIRST], before)
        store_blocks(operand, u, 32, every, (product,), 0, 1)
        after, slots = FORWARD(xs[FIRST:], hs[FIRST:], before, slots)
    store_blocks(next, u, 32, every, after, 0, S)
    store_blocks(reserve, u, 32, every, slots, 0, R)


@triton.jit
def backward(
    reserve,  # [R, 32]
    prev,  # [S, 32]
    next,
    grad_next,
    grad_operand,  # [1, 32]
    grad_x,  # [G, 32]
    grad_h,
    grad_prev,  # [S, 32]
    BACKWARD: tl.constexpr,
    OPERAND_BACKWARD: tl.constexpr,
    FIRST: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    R: tl.constexpr,
):
    u = tl.arange(0, 32)
    every = u < 32
    slots, before = load_blocks(reserve, u, 32, every, R), load_blocks(prev, u, 32, every, S)
    after, grads = load_blocks(next, u, 32, every, S), load_blocks(grad_next, u, 32, every, S)
    to_x, to_h, back = BACKWARD(slots, before, after, grads)
    if FIRST != 0:
        grad = load_blocks(grad_operand, u, 32, every, 1)
        first, direct = OPERAND_BACKWARD(slots, before, grad[0], back[0])
        to_x, back = (first,) + to_x[1:], (direct,) + back[1:]
        to_h = to_x
    store_blocks(grad_x, u, 32, every, to_x, 0, G)
    store_blocks(grad_h, u, 32, every, to_h, 0, G)
    store_blocks(grad_prev, u, 32, every, back, 0, S)
