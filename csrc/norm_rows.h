// Layer normalisation of a row by a block: sums in one order, a row's moments, and the way back.
#pragma once

#include "device_rows.h"

namespace fastrnn::cuda {

constexpr int row_threads = 256, row_warps = row_threads / 32;
constexpr double norm_eps = 1e-5;

// A block's row.
__device__ __forceinline__ Index block_row() { return Index(blockIdx.y) * gridDim.x + blockIdx.x; }

// Calls of_packet(unit) for the packets of a row [n] that are this thread's.
template <int Width, class OfPacket>
__device__ __forceinline__ void each_packet(Index n, const OfPacket& of_packet) {
  for (Index unit = threadIdx.x * Width; unit < n; unit += blockDim.x * Width) of_packet(unit);
}

// Sums over the block's threads, in all of them. `shared` [row_warps, N] serves one call alone, so
// that one barrier is enough.
template <class V, int N>
__device__ __forceinline__ void block_sum(V (&sums)[N], V* shared) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
#pragma unroll
    for (unsigned mask = 16; mask > 0; mask /= 2) sums[j] += shuffle_xor(sums[j], mask);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32 * N + j] = sums[j];
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < N; ++j) {
    sums[j] = V(0);
    for (int warp = 0; warp < int(blockDim.x) / 32; ++warp) sums[j] += shared[warp * N + j];
  }
}

template <class V>
struct Moments {
  V mean, scale;  // scale: 1 / sqrt(variance + eps)

  __device__ __forceinline__ V normalised(V x) const { return (x - mean) * scale; }
};

// Of N rows at once, row j [sizes[j]], or zeros if it is null. `shared`: [2 * N * row_warps].
template <int Width, class T, int N>
__device__ __forceinline__ void find_moments(const T* const (&rows)[N], const Index (&sizes)[N],
                                             Moments<Sum<T>> (&found)[N], Sum<T>* shared) {
  using V = Sum<T>;
  V sums[N];
#pragma unroll
  for (int j = 0; j < N; ++j) {
    sums[j] = V(0);
    each_packet<Width>(rows[j] ? sizes[j] : 0, [&](Index unit) {
      const auto x = load<T, Width>(rows[j] + unit);
#pragma unroll
      for (int i = 0; i < Width; ++i) sums[j] += x.get(i);
    });
  }
  block_sum(sums, shared);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    found[j].mean = sums[j] / V(sizes[j]);
    sums[j] = V(0);
    each_packet<Width>(rows[j] ? sizes[j] : 0, [&](Index unit) {
      const auto x = load<T, Width>(rows[j] + unit);
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        const V deviation = x.get(i) - found[j].mean;
        sums[j] += deviation * deviation;
      }
    });
  }
  block_sum(sums, shared + N * row_warps);
#pragma unroll
  for (int j = 0; j < N; ++j)
    found[j].scale = V(1) / std::sqrt(sums[j] / V(sizes[j]) + V(norm_eps));
}

// The gradient of x from that of y = gain * normalised(x) + bias, over a row [n].
template <class V>
struct NormBack {
  V sums[2] = {V(0), V(0)};  // of gain * grad_y; of the same times normalised(x)

  __device__ __forceinline__ void add(V scaled, V normalised) {
    sums[0] += scaled, sums[1] += scaled * normalised;
  }
  // `scaled`: gain * grad_y.
  __device__ __forceinline__ V grad(const Moments<V>& of, Index n, V scaled, V normalised) const {
    return of.scale * (scaled - sums[0] / V(n) - normalised * (sums[1] / V(n)));
  }
};

// ... for all of it: to out [n].
template <int Width, class T>
__device__ __forceinline__ void norm_row_backward(const NormBack<Sum<T>>& back,
                                                  const Moments<Sum<T>>& of, Index n, const T* x,
                                                  const T* gain, const T* grad_y, T* out) {
  each_packet<Width>(n, [&](Index unit) {
    const auto xs = load<T, Width>(x + unit), gains = load<T, Width>(gain + unit);
    auto grads = load<T, Width>(grad_y + unit);
#pragma unroll
    for (int i = 0; i < Width; ++i)
      grads.set(i, back.grad(of, n, grads.get(i) * gains.get(i), of.normalised(xs.get(i))));
    store(grads, out + unit);
  });
}

}  // namespace fastrnn::cuda
