// The exponential and the logarithm that a softmax needs.
#pragma once

#include "activations_cpu.h"

namespace fastrnn::FASTRNN_ISA {

// Where exp(x) stands for exp(x - largest x): what is lost to sums and products near the ends of
// T's range is then far away. That saves a pass over the x.
constexpr float level_most = 32, level_least_sum = 1e-12f;

// exp of x <= level_most, and 0 from about T's smallest normal number down, -inf too; NaN stays. A
// power of two, 2^n 2^r with |r| <= 1/2, by Horner's scheme: of all it has the fewest operations,
// and vectors do not wait for each other. That log2(e) was rounded changes all x by the same share,
// which a quotient of two exponentials shows only where one is far smaller.
template <class T>
FASTRNN_INLINE Vec<T> exp_or_zero(Vec<T> x) {
  using C = Constants<T>;
  using V = Vec<T>;
  const V unit(T(1.4426950408889634)), biased(C::round + T(C::bias));
  x = max(V(T(-0.6931471805599453 * C::bias)), x);  // there the scale is 0
  const V shifted = x * unit + biased, r = x * unit - (shifted - biased);
  constexpr int degree = sizeof C::exp2_series / sizeof(T) - 1;
  V sum(C::exp2_series[degree]);
#pragma GCC unroll 16
  for (int k = degree - 1; k >= 0; --k) sum = sum * r + V(C::exp2_series[k]);
  return sum * V(typename V::Register(typename C::Bits(shifted.v) << C::mantissa));
}

// log of normal x (0 may come, what it gives is not to be read): the exponent and mantissa f taken
// for a line, a parabola against what that misses, then Halley's steps towards exp(y) = x, each of
// which cubes the error.
template <class T>
FASTRNN_INLINE Vec<T> log_positive(Vec<T> x) {
  using C = Constants<T>;
  using V = Vec<T>;
  using Bits = typename C::Bits;
  const auto bits = __builtin_convertvector(Bits(x.v), typename V::Register);
  constexpr auto low = (typename C::Whole(1) << C::mantissa) - 1;
  const V one(T(1)), f = V(typename V::Register(Bits(one.v) | (Bits(x.v) & low))) - one;
  V y = V(bits) * V(T(1) / T(low + 1)) - V(T(C::bias));
  y = (y + f * (one - f) * V(T(0.3465))) * V(T(0.6931471805599453));
  for (unsigned step = 0; step < sizeof(T) / 4; ++step) {
    V scale, fraction;
    split_exp(y, scale, fraction);
    const V e = scale * fraction + scale;
    y = y + (x - e) / (x + e) * V(T(2));
  }
  return y;
}

}  // namespace fastrnn::FASTRNN_ISA
