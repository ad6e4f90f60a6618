// Every cell's gate maths, once, for every schedule and device: pure functions on registers.
// V is a vector or a scalar with + - * and, found by overload, sigmoid, tanh, relu and
// where_positive. A function indexes nothing and converts nothing; the loops do.
//
//   gates            G, blocks of H rows in each weight
//   states           S, values carried from step to step; the first is the output h
//   reserve          R, values a step keeps for the backward pass
//   operand_gates    0: one product a step, of h. Otherwise `operand` makes a second product's
//                    operand from this many first gates, and `forward` gets the other gates
//   shared_gates     how many gates, from the first, have the same gradients in the x- and the
//                    h-product
//
//   forward(x[G], h[G], prev[S], next[S], reserve[R])
//   backward(reserve[R], prev[S], next[S], grad_next[S], grad_x[G], grad_h[G], grad_prev[S])
//
// x and h are the gates' shares from the input and from the state, biases included. grad_prev is
// the part of the gradient that does not pass through a product. Where all gates are
// shared grad_h is not written. `fastrnn/cells.py` holds the same functions in torch, with their
// sources.
#pragma once

#include "activations.h"
#include "inline.h"

namespace fastrnn::FASTRNN_ISA {

template <class Cell>
constexpr bool shared_gradients = Cell::shared_gates == Cell::gates;

// A unit's sums of biases: one where the two shares are only added, else one for each.
template <class Cell>
constexpr int biases = 2 * Cell::gates - Cell::shared_gates;

template <class V>
FASTRNN_INLINE V sigmoid_slope(V y) {
  return y - y * y;
}

template <class V>
FASTRNN_INLINE V tanh_slope(V y) {
  return V(1) - y * y;
}

struct Lstm {
  static constexpr int gates = 4, states = 2, reserve = 4, operand_gates = 0, shared_gates = 4;

  template <class V>
  static FASTRNN_INLINE void forward(const V* x, const V* h, const V* prev, V* next, V* reserve) {
    const V i = sigmoid(x[0] + h[0]), f = sigmoid(x[1] + h[1]);
    const V g = tanh(x[2] + h[2]), o = sigmoid(x[3] + h[3]);
    reserve[0] = i, reserve[1] = f, reserve[2] = g, reserve[3] = o;
    next[1] = f * prev[1] + i * g;
    next[0] = output(reserve, next[1]);
  }

  // h of c, which layer normalisation may have changed on its way here.
  template <class V>
  static FASTRNN_INLINE V output(const V* reserve, V c) {
    return reserve[3] * tanh(c);
  }

  template <class V>
  static FASTRNN_INLINE void backward(const V* reserve, const V* prev, const V* next,
                                      const V* grad_next, V* grad_x, V*, V* grad_prev) {
    const V through_h = output_backward(reserve, next[1], grad_next[0], grad_x);
    cell_backward(reserve, prev, grad_next[1] + through_h, grad_x, grad_prev);
  }

  // The gradient of the c that `output` took; writes that of its gate.
  template <class V>
  static FASTRNN_INLINE V output_backward(const V* reserve, V c, V grad_h, V* grad_x) {
    const V o = reserve[3], tanh_c = tanh(c);
    grad_x[3] = grad_h * tanh_c * sigmoid_slope(o);
    return grad_h * o * tanh_slope(tanh_c);
  }

  // The other gates'.
  template <class V>
  static FASTRNN_INLINE void cell_backward(const V* reserve, const V* prev, V grad_c, V* grad_x,
                                           V* grad_prev) {
    const V i = reserve[0], f = reserve[1], g = reserve[2];
    grad_x[0] = grad_c * g * sigmoid_slope(i);
    grad_x[1] = grad_c * prev[1] * sigmoid_slope(f);
    grad_x[2] = grad_c * i * tanh_slope(g);
    grad_prev[0] = V(0), grad_prev[1] = grad_c * f;
  }
};

struct Gru {
  static constexpr int gates = 3, states = 1, reserve = 4, operand_gates = 0, shared_gates = 2;

  template <class V>
  static FASTRNN_INLINE void forward(const V* x, const V* h, const V* prev, V* next, V* reserve) {
    const V r = sigmoid(x[0] + h[0]), z = sigmoid(x[1] + h[1]);
    const V n = tanh(x[2] + r * h[2]);
    next[0] = n + z * (prev[0] - n);
    reserve[0] = r, reserve[1] = z, reserve[2] = n, reserve[3] = h[2];
  }

  template <class V>
  static FASTRNN_INLINE void backward(const V* reserve, const V* prev, const V*, const V* grad_next,
                                      V* grad_x, V* grad_h, V* grad_prev) {
    const V r = reserve[0], z = reserve[1], n = reserve[2], grad = grad_next[0];
    const V grad_n = grad * (V(1) - z) * tanh_slope(n);
    grad_x[0] = grad_h[0] = grad_n * reserve[3] * sigmoid_slope(r);
    grad_x[1] = grad_h[1] = grad * (prev[0] - n) * sigmoid_slope(z);
    grad_x[2] = grad_n, grad_h[2] = grad_n * r;
    grad_prev[0] = grad * z;
  }
};

struct GruResetBefore {
  static constexpr int gates = 3, states = 1, reserve = 3, operand_gates = 2, shared_gates = 3;

  template <class V>
  static FASTRNN_INLINE V operand(const V* x, const V* h, const V* prev, V* reserve) {
    reserve[0] = sigmoid(x[0] + h[0]), reserve[1] = sigmoid(x[1] + h[1]);
    return reserve[0] * prev[0];
  }

  template <class V>
  static FASTRNN_INLINE void forward(const V* x, const V* h, const V* prev, V* next, V* reserve) {
    const V z = reserve[1], n = tanh(x[0] + h[0]);
    next[0] = n + z * (prev[0] - n);
    reserve[2] = n;
  }

  template <class V>
  static FASTRNN_INLINE void backward(const V* reserve, const V* prev, const V*, const V* grad_next,
                                      V* grad_x, V*, V* grad_prev) {
    const V z = reserve[1], n = reserve[2], grad = grad_next[0];
    grad_x[0] = V(0);  // operand_backward writes it
    grad_x[1] = grad * (prev[0] - n) * sigmoid_slope(z);
    grad_x[2] = grad * (V(1) - z) * tanh_slope(n);
    grad_prev[0] = grad * z;
  }

  // grad_x holds the operand's gates, grad_prev what `backward` left; returns the operand.
  template <class V>
  static FASTRNN_INLINE V operand_backward(const V* reserve, const V* prev, V grad_operand,
                                           V* grad_x, V* grad_prev) {
    const V r = reserve[0];
    grad_x[0] = grad_operand * prev[0] * sigmoid_slope(r);
    grad_prev[0] = grad_prev[0] + grad_operand * r;
    return r * prev[0];
  }
};

struct RnnTanh {
  static constexpr int gates = 1, states = 1, reserve = 0, operand_gates = 0, shared_gates = 1;

  template <class V>
  static FASTRNN_INLINE void forward(const V* x, const V* h, const V*, V* next, V*) {
    next[0] = tanh(x[0] + h[0]);
  }

  template <class V>
  static FASTRNN_INLINE void backward(const V*, const V*, const V* next, const V* grad_next,
                                      V* grad_x, V*, V* grad_prev) {
    grad_x[0] = grad_next[0] * tanh_slope(next[0]);
    grad_prev[0] = V(0);
  }
};

struct RnnRelu {
  static constexpr int gates = 1, states = 1, reserve = 0, operand_gates = 0, shared_gates = 1;

  template <class V>
  static FASTRNN_INLINE void forward(const V* x, const V* h, const V*, V* next, V*) {
    next[0] = relu(x[0] + h[0]);
  }

  template <class V>
  static FASTRNN_INLINE void backward(const V*, const V*, const V* next, const V* grad_next,
                                      V* grad_x, V*, V* grad_prev) {
    grad_x[0] = where_positive(next[0], grad_next[0]);
    grad_prev[0] = V(0);
  }
};

}  // namespace fastrnn::FASTRNN_ISA
