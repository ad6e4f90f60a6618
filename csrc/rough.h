// float for results that are rounded to 16 bits: its functions are right to about 1e-6 and have no
// branches, so that the gates of a lane's sequences are worked out side by side.
#pragma once

#include "activations.h"
#include "gpu.h"

namespace fastrnn::cuda {

struct Rough {
  float value;

  Rough() = default;
  __device__ __forceinline__ explicit Rough(float value) : value(value) {}
};

__device__ __forceinline__ Rough operator+(Rough a, Rough b) { return Rough(a.value + b.value); }
__device__ __forceinline__ Rough operator-(Rough a, Rough b) { return Rough(a.value - b.value); }
__device__ __forceinline__ Rough operator*(Rough a, Rough b) { return Rough(a.value * b.value); }

// 1 / (1 + e^x), 0 where that overflows.
__device__ __forceinline__ float falling(float x) {
  constexpr float log2_e = 1.44269504f;
  return reciprocal(1.f + power_of_two(log2_e * x));
}
__device__ __forceinline__ Rough sigmoid(Rough x) { return Rough(falling(-x.value)); }

__device__ __forceinline__ Rough tanh(Rough x) {
  const float size = ::fabsf(x.value), square = size * size;
  const float large = 1.f - 2.f * falling(2.f * size);
  // Near 0 that loses digits. Least squares over 0 to 1/2, right to 2e-8.
  const float series =
      -0.33333141f + square * (0.13325822f + square * (-0.05304216f + square * 0.01723538f));
  const float small = size + size * square * series;
  return Rough(::copysignf(size < 0.5f ? small : large, x.value));
}

__device__ __forceinline__ Rough relu(Rough x) { return Rough(device::relu(x.value)); }
__device__ __forceinline__ Rough where_positive(Rough condition, Rough x) {
  return Rough(device::where_positive(condition.value, x.value));
}

// What the persistent schedules work out a step's gates in.
template <class T>
struct GateOf {
  using type = Rough;
};
template <>
struct GateOf<float> {
  using type = float;
};
template <class T>
using Gate = typename GateOf<T>::type;

__device__ __forceinline__ float plain(float x) { return x; }
__device__ __forceinline__ float plain(Rough x) { return x.value; }

}  // namespace fastrnn::cuda
