// The exponential and the logarithm that a softmax needs.
#pragma once

#include "activations_cpu.h"

namespace fastrnn::FASTRNN_ISA {

// Where exp(x) stands for exp(x - largest x): what is lost to sums and products near the ends of
// T's range is then far away. That saves a pass over the x.
constexpr float level_most = 32, level_least_sum = 1e-12f;

// exp of x <= level_most, and 0 of what is below T's smallest normal number, -inf too; NaN stays. A
// power of two, 2^n 2^r with |r| <= 1/2 and Taylor's series. That log2(e) was rounded changes all x
// by the same share, which a quotient of two exponentials shows only where one is far smaller.
template <class T>
FASTRNN_INLINE Vec<T> exp_or_zero(Vec<T> x) {
  using C = Constants<T>;
  using V = Vec<T>;
  constexpr T ln2 = T(0.6931471805599453);
  const V unit(T(1.4426950408889634)), biased(C::round + T(C::bias));
  const V shifted = x * unit + biased;
  const V r = x * unit - (shifted - biased);
  T coefficient(1);
  V terms[C::degree + 1];  // by Estrin's scheme: a short chain of operations
#pragma GCC unroll 16
  for (int k = 0; k <= C::degree; ++k, coefficient *= ln2 / T(k)) terms[k] = V(coefficient);
  V power = r;
#pragma GCC unroll 4
  for (int n = C::degree + 1; n > 1; n = (n + 1) / 2) {
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) terms[i] = terms[2 * i] + terms[2 * i + 1] * power;
    if (n % 2) terms[n / 2] = terms[n - 1];
    power = power * power;
  }
  const V sum = terms[0];
  const V scale = typename V::Register(typename C::Bits(shifted.v) << C::mantissa);
  const V y = sum * scale;
  return x.v < V(-C::exp_limit).v ? V(T(0)).v : y.v;
}

// log of normal x (0 may come, what it gives is not to be read): the exponent and mantissa taken
// for a line, then two of Halley's steps towards exp(y) = x, each of which cubes the error.
template <class T>
FASTRNN_INLINE Vec<T> log_positive(Vec<T> x) {
  using C = Constants<T>;
  using V = Vec<T>;
  const auto bits = __builtin_convertvector(typename C::Bits(x.v), typename V::Register);
  V y = (V(bits) * V(T(1) / T(typename C::Whole(1) << C::mantissa)) - V(T(C::bias))) *
        V(T(0.6931471805599453));
  for (int step = 0; step < 2; ++step) {
    V scale, fraction;
    split_exp(y, scale, fraction);
    const V e = scale * fraction + scale;
    y = y + (x - e) / (x + e) * V(T(2));
  }
  return y;
}

}  // namespace fastrnn::FASTRNN_ISA
