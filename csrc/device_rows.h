// What the CUDA schedules share: packets of a row's units, and what acts inside a step besides the
// cell.
#pragma once

#include <cmath>

#include "cells.h"
#include "gpu.h"
#include "kernels_cuda.h"
#include "philox.h"

namespace fastrnn::cuda {

using Index = std::int64_t;

template <int N>
constexpr int at_least_one = N > 0 ? N : 1;

// Neighbouring units of a row, read and written at once.
template <class T, int Width>
struct alignas(Width * sizeof(T) < 16 ? Width * sizeof(T) : 16) Packet {
  T values[Width];

  __device__ __forceinline__ Sum<T> get(int i) const { return widen(values[i]); }
  __device__ __forceinline__ void set(int i, Sum<T> x) { narrow(x, &values[i]); }
};

template <class T, int Width>
__device__ __forceinline__ Packet<T, Width> load(const T* from) {
  return at_once<const Packet<T, Width>>(from);
}

template <class T, int Width>
__device__ __forceinline__ void store(const Packet<T, Width>& packet, T* to) {
  at_once<Packet<T, Width>>(to) = packet;
}

// The same units of Count blocks that are `stride` apart; zeros from null.
template <int Count, class T, int Width>
__device__ __forceinline__ void load_blocks(const T* from, Index stride,
                                            Packet<T, Width> (&packets)[at_least_one<Count>]) {
#pragma unroll
  for (int i = 0; i < Count; ++i)
    packets[i] = from ? load<T, Width>(from + i * stride) : Packet<T, Width>{};
}

template <int Count, class T, int Width>
__device__ __forceinline__ void store_blocks(const Packet<T, Width> (&packets)[at_least_one<Count>],
                                             Index stride, T* to) {
#pragma unroll
  for (int i = 0; i < Count; ++i) store(packets[i], to + i * stride);
}

// Extras as the kernels use them.
struct Regularisers {
  const bool* resets;
  const Index* seed;
  const Index* sequences;
  bool zoned;
  bool keeps_states;                     // the reserve has the states that a step made
  std::uint64_t keep_below[max_states];  // a unit is kept if its random word is below
  double expected[max_states];           // how much of it is, without a seed

  explicit Regularisers(const Sequence& s)
      : resets(s.extras.resets),
        seed(s.extras.seed),
        sequences(s.extras.sequences),
        zoned(s.extras.zoned) {
    for (int i = 0; i < max_states; ++i) {
      keep_below[i] = std::uint64_t(std::llrint(s.extras.zoneout[i] * 4294967296.));
      expected[i] = s.extras.zoneout[i];
    }
    keeps_states = zoned || s.projected;
  }

  // Slots of a row of the reserve; those of layer normalisation follow.
  template <class Cell>
  __host__ __device__ __forceinline__ Index slots() const {
    return Cell::reserve + (keeps_states ? Cell::states : 0);
  }

  __device__ __forceinline__ bool reset(Index row) const { return resets && resets[row]; }

  // How much of a unit's state stays: 0 or 1 in training.
  template <class V>
  __device__ __forceinline__ V kept(int state, Index time, Index sequence, Index unit) const {
    if (!seed) return V(expected[state]);
    const Index number = sequences ? sequences[sequence] : sequence;
    std::uint32_t words[4];
    device::philox(std::uint64_t(*seed), std::uint32_t(unit / 4), std::uint32_t(number),
                   std::uint32_t(time), std::uint32_t(state), words);
    // Chosen, not indexed: an index would put the words into the device's local memory.
    const std::uint32_t low = unit & 1 ? words[1] : words[0];
    const std::uint32_t high = unit & 1 ? words[3] : words[2];
    return (unit & 2 ? high : low) < keep_below[state] ? V(1) : V(0);
  }
};

// Zoneout (Krueger et al. 2016, eq. 3); what is not used does not matter, be it NaN.
template <class V>
__device__ __forceinline__ V mixed(V prev, V next, V kept) {
  if (kept == V(0)) return next;
  if (kept == V(1)) return prev;
  return kept * prev + (V(1) - kept) * next;
}

// The share of a gradient that goes through the step, not around it.
template <class V>
__device__ __forceinline__ V through(V grad, V kept) {
  return kept == V(1) ? V(0) : (V(1) - kept) * grad;
}

// The share that goes around it.
template <class V>
__device__ __forceinline__ V around(V grad, V kept) {
  return kept == V(0) ? V(0) : kept * grad;
}

}  // namespace fastrnn::cuda
