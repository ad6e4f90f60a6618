// The exponential and the activations made of it, on vectors.
#pragma once

#include "simd.h"

namespace fastrnn::FASTRNN_ISA {

// exp(x) = scale * (1 + fraction), fraction = exp(r) - 1 exact near 0: x = n ln 2 + r,
// |r| <= ln(2) / 2, Taylor's series to the power that reaches T's precision, by Estrin's scheme: a
// short chain of operations, since few rows fit into the reorder buffer at once.
template <class T>
FASTRNN_INLINE void split_exp(Vec<T> x, Vec<T>& scale, Vec<T>& fraction) {
  using C = Constants<T>;
  using V = Vec<T>;
  const V round(C::round);
  const V shifted = x * V(T(1.4426950408889634)) + round;
  const V n = shifted - round;
  const V r = (x - n * V(C::ln2_high)) - n * V(C::ln2_low);
  constexpr int terms = C::degree - 1;
  V sum[terms];  // of r^2 / 2! + r^3 / 3! + .., over r^2
  T factorial(1);
#pragma GCC unroll 16
  for (int k = 0; k < terms; ++k) sum[k] = V(T(1) / (factorial *= T(k + 2)));
  V power = r;
#pragma GCC unroll 4
  for (int n = terms; n > 1; n = (n + 1) / 2) {
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) sum[i] = sum[2 * i] + sum[2 * i + 1] * power;
    if (n % 2) sum[n / 2] = sum[n - 1];
    power = power * power;
  }
  fraction = r * r * sum[0] + r;
  using Bits = typename C::Bits;
  const Bits exponent = Bits(shifted.v) - Bits(round.v) + C::bias;
  scale.v = typename V::Register(exponent << C::mantissa);
}

// exp of x <= 0; what is below T's smallest normal number ends there.
template <class T>
FASTRNN_INLINE Vec<T> exp_negative(Vec<T> x) {
  Vec<T> scale, fraction;
  split_exp(max(Vec<T>(-Constants<T>::exp_limit), x), scale, fraction);
  return scale * fraction + scale;
}

template <class T>
FASTRNN_INLINE Vec<T> sigmoid(Vec<T> x) {
  Vec<T> scale, fraction;
  // Of exp(-x) the limits are a normal number and infinity, so that a gate at -inf is 0.
  using C = Constants<T>;
  split_exp(clamp(Vec<T>(T(0)) - x, -C::exp_limit, C::exp_overflow), scale, fraction);
  const Vec<T> one(T(1));
  return one / (scale * (one + fraction) + one);
}

// tanh x = e / (e + 2) with e = exp(2x) - 1, which keeps its relative precision near 0.
template <class T>
FASTRNN_INLINE Vec<T> tanh(Vec<T> x) {
  Vec<T> scale, fraction;
  x = clamp(x, -Constants<T>::tanh_limit, Constants<T>::tanh_limit);
  split_exp(x + x, scale, fraction);
  const Vec<T> e = scale * fraction + (scale - Vec<T>(T(1)));
  return e / (e + Vec<T>(T(2)));
}

template <class T>
FASTRNN_INLINE Vec<T> relu(Vec<T> x) {
  return max(Vec<T>(T(0)), x);  // NaN stays
}

}  // namespace fastrnn::FASTRNN_ISA
