"""Every cell's gate maths in Triton: the twins of csrc/cells.h, on registers.

x, h, prev, next, reserve and grad_* are tuples of blocks, as many as the cell has gates, states or
slots. A function indexes no memory and converts nothing; the kernels do. `backward` returns the
gradients of the x-products, of the h-products (the same blocks where the cell shares them), and
of prev as far as it does not pass through a product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    """tanh x, with its relative precision near 0 (Cephes' rational approximation)."""
    a, s = tl.abs(x), x * x
    top = (-9.64399179425052238628e-1 * s - 9.92877231001918586564e1) * s - 1.61468768441708447952e3
    bottom = ((s + 1.12811678491632931402e2) * s + 2.23548839060100448583e3) * s
    near = x + x * s * (top / (bottom + 4.84406305325125486048e3))
    far = 1 - 2 / (tl.exp(2 * a) + 1)
    return tl.where(a < 0.625, near, tl.where(x < 0, -far, far))


@triton.jit
def sigmoid_slope(y):
    return y - y * y


@triton.jit
def tanh_slope(y):
    return 1 - y * y


@triton.jit
def lstm_forward(x, h, prev):
    i, f = sigmoid(x[0] + h[0]), sigmoid(x[1] + h[1])
    g, o = tanh(x[2] + h[2]), sigmoid(x[3] + h[3])
    c = f * prev[1] + i * g
    return (o * tanh(c), c), (i, f, g, o)


@triton.jit
def lstm_backward(reserve, prev, next, grad_next):
    i, f, g, o = reserve
    tanh_c = tanh(next[1])
    grad_c = grad_next[1] + grad_next[0] * o * tanh_slope(tanh_c)
    grads = (
        grad_c * g * sigmoid_slope(i),
        grad_c * prev[1] * sigmoid_slope(f),
        grad_c * i * tanh_slope(g),
        grad_next[0] * tanh_c * sigmoid_slope(o),
    )
    return grads, grads, (tl.zeros_like(grad_c), grad_c * f)


@triton.jit
def gru_forward(x, h, prev):
    r, z = sigmoid(x[0] + h[0]), sigmoid(x[1] + h[1])
    n = tanh(x[2] + r * h[2])
    return (n + z * (prev[0] - n),), (r, z, n, h[2])


@triton.jit
def gru_backward(reserve, prev, next, grad_next):
    r, z, n, h_n = reserve
    grad = grad_next[0]
    grad_n = grad * (1 - z) * tanh_slope(n)
    grad_r = grad_n * h_n * sigmoid_slope(r)
    grad_z = grad * (prev[0] - n) * sigmoid_slope(z)
    return (grad_r, grad_z, grad_n), (grad_r, grad_z, grad_n * r), (grad * z,)


@triton.jit
def gru_reset_before_operand(x, h, prev):
    r, z = sigmoid(x[0] + h[0]), sigmoid(x[1] + h[1])
    return r * prev[0], (r, z)


@triton.jit
def gru_reset_before_forward(x, h, prev, reserve):
    r, z = reserve
    n = tanh(x[0] + h[0])
    return (n + z * (prev[0] - n),), (r, z, n)


@triton.jit
def gru_reset_before_backward(reserve, prev, next, grad_next):
    r, z, n = reserve
    grad = grad_next[0]
    grads = (
        tl.zeros_like(grad),  # operand_backward makes it
        grad * (prev[0] - n) * sigmoid_slope(z),
        grad * (1 - z) * tanh_slope(n),
    )
    return grads, grads, (grad * z,)


@triton.jit
def gru_reset_before_operand_backward(reserve, prev, grad_operand, grad_prev):
    r = reserve[0]
    return grad_operand * prev[0] * sigmoid_slope(r), grad_prev + grad_operand * r


@triton.jit
def rnn_tanh_forward(x, h, prev):
    return (tanh(x[0] + h[0]),), ()


@triton.jit
def rnn_tanh_backward(reserve, prev, next, grad_next):
    grads = (grad_next[0] * tanh_slope(next[0]),)
    return grads, grads, (tl.zeros_like(grad_next[0]),)


@triton.jit
def rnn_relu_forward(x, h, prev):
    a = x[0] + h[0]
    return (tl.where(a < 0, 0.0, a),), ()  # NaN stays


@triton.jit
def rnn_relu_backward(reserve, prev, next, grad_next):
    grads = (tl.where(next[0] <= 0, 0.0, grad_next[0]),)
    return grads, grads, (tl.zeros_like(grad_next[0]),)


class Cell(NamedTuple):
    """A cell's sizes, as in csrc/cells.h, and its functions."""

    gates: int
    states: int
    reserve: int
    forward: Any
    backward: Any
    shared_gradients: bool = True
    operand_gates: int = 0
    operand: Any = None
    operand_backward: Any = None


CELLS = {
    "lstm": Cell(4, 2, 4, lstm_forward, lstm_backward),
    "gru": Cell(3, 1, 4, gru_forward, gru_backward, shared_gradients=False),
    "gru_reset_before": Cell(
        3,
        1,
        3,
        gru_reset_before_forward,
        gru_reset_before_backward,
        operand_gates=2,
        operand=gru_reset_before_operand,
        operand_backward=gru_reset_before_operand_backward,
    ),
    "rnn_tanh": Cell(1, 1, 0, rnn_tanh_forward, rnn_tanh_backward),
    "rnn_relu": Cell(1, 1, 0, rnn_relu_forward, rnn_relu_backward),
}
