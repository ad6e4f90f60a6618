// What attention's scores meet on the device before they are weights: masks, the causal rule, the
// tensors' ends, dropout.
#pragma once

#include "attention_tiles.h"

namespace fastrnn::cuda {

template <class S>
constexpr S infinity = S(__builtin_huge_val());

// Exponentials are of base 2 for 16 bits, one instruction, and of e for the others.
template <class T>
constexpr bool base_two = sizeof(T) == 2;
template <class T>
constexpr Sum<T> exponent_unit = base_two<T> ? Sum<T>(1.4426950408889634) : Sum<T>(1);

template <class T>
__device__ __forceinline__ Sum<T> exponential(Sum<T> x) {
  if constexpr (base_two<T>)
    return power_of_two(x);
  else if constexpr (sizeof(T) == 4)
    return ::expf(x);
  else
    return ::exp(x);
}

__device__ __forceinline__ float logarithm(float x) { return ::logf(x); }
__device__ __forceinline__ double logarithm(double x) { return ::log(x); }

__device__ __forceinline__ std::uint32_t first_bits(int count) {
  return count < 32 ? (1u << count) - 1 : ~0u;
}

// One pair of batch and head.
template <class T>
struct Masks {
  const Attention& a;
  const unsigned char* bytes;  // a boolean mask
  const T* values;             // an additive one
  std::uint32_t pair;

  __device__ __forceinline__ Masks(const Attention& a, Index pair)
      : a(a), bytes(nullptr), values(nullptr), pair(std::uint32_t(pair)) {
    const Index offset = pair / a.heads * a.mask.batch + pair % a.heads * a.mask.head;
    if (a.mask_kind == Mask::boolean) bytes = static_cast<unsigned char*>(a.mask.data) + offset;
    if (a.mask_kind == Mask::additive) values = static_cast<T*>(a.mask.data) + offset;
  }

  __device__ __forceinline__ Index place(Index i, Index j) const {
    return i * a.mask.row + j * a.mask_column;
  }
  __device__ __forceinline__ Sum<T> added(Index i, Index j) const {
    return widen(values[place(i, j)]) * exponent_unit<T>;
  }

  // Of the keys j to j + Count - 1 those that query i attends to, a bit each.
  template <int Count>
  __device__ __forceinline__ std::uint32_t counting(Index i, Index j) const {
    const Index end = a.causal && i + 1 < a.keys ? i + 1 : a.keys;
    const Index inside = i < a.queries ? end - j : 0;
    std::uint32_t bits = inside <= 0 ? 0 : first_bits(inside < Count ? int(inside) : Count);
    if (a.mask_kind == Mask::none || bits == 0) return bits;
    const Index at = place(i, j);
    if (a.mask_column == 0) return (bytes ? allows(bytes[at]) : allows(values[at])) ? bits : 0;
    const bool whole = j + Count <= a.keys;
    return bits & (bytes ? of_row<Count>(bytes + at, bits, whole)
                         : of_row<Count>(values + at, bits, whole));
  }

  // Whether dropout keeps the weights of query i and of key j, and of the one after an even j.
  struct Kept {
    bool first, second;
  };
  __device__ __forceinline__ Kept kept(Index i, Index j) const {
    std::uint32_t words[4];
    device::philox(std::uint64_t(*a.seed), std::uint32_t(j / 4), pair, std::uint32_t(i), 0, words);
    // Chosen, not indexed: an index would put the words into the device's local memory.
    const std::uint32_t first =
        j & 2 ? (j & 1 ? words[3] : words[2]) : (j & 1 ? words[1] : words[0]);
    return {first >= a.dropped_below, (j & 2 ? words[3] : words[1]) >= a.dropped_below};
  }

 private:
  static __device__ __forceinline__ bool allows(unsigned char byte) { return byte != 0; }
  static __device__ __forceinline__ bool allows(T value) {
    return !(widen(value) == -infinity<Sum<T>>);
  }

  // The bits of Count values side by side, 16 bytes at a time where all are there, or one by one.
  template <int Count, class V>
  static __device__ __forceinline__ std::uint32_t of_row(const V* row, std::uint32_t wanted,
                                                         bool whole) {
    constexpr int width = 16 / int(sizeof(V));
    std::uint32_t bits = 0;
    if (Count % width == 0 && whole && reinterpret_cast<std::uintptr_t>(row) % 16 == 0) {
      Packet<V, width> pieces[Count / width + (Count < width)];
#pragma unroll
      for (int i = 0; i < Count / width; ++i) pieces[i] = load<V, width>(row + i * width);
#pragma unroll
      for (int i = 0; i < Count; ++i)
        bits |= std::uint32_t(allows(pieces[i / width].values[i % width])) << i;
    } else {
#pragma unroll 8
      for (int i = 0; i < Count; ++i)
        if (wanted >> i & 1) bits |= std::uint32_t(allows(row[i])) << i;
    }
    return bits;
  }
};

// A warp's rows are queries and its columns keys, or the other way round. Which of the scores
// count, one bit each: lane by lane a query's keys, one register, until `spread` hands each lane
// those of its own scores.
template <int M, int Step>
struct QueryBits {
  static constexpr bool of_keys = false;
  std::uint32_t own;          // of query `lane` of the rows
  bool any, all;              // of the warp's scores count
  std::uint32_t words[M][2];  // of the lane's rows, from its first column on

  template <class T>
  __device__ __forceinline__ void look(const Lane& at, const Masks<T>& masks, Index row,
                                       Index column) {
    own = masks.template counting<Step>(row + at.lane % (16 * M), column);
    any = ballot(own != 0) != 0;
    all = ballot(own != first_bits(Step)) == 0;
  }
  __device__ __forceinline__ void spread(const Lane& at) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) words[m][h] = shuffle(own, at.row(m, h)) >> 2 * at.place;
  }
  __device__ __forceinline__ bool operator()(int m, int n, int e) const {
    return words[m][e / 2] >> (8 * n + e % 2) & 1;
  }
};

template <int Step>
struct KeyBits {
  static constexpr bool of_keys = true;
  std::uint32_t own;  // of query `lane` of the columns
  bool any, all;
  std::uint32_t words[Step / 8];  // 16 keys of the lane's even column, 16 of its odd one

  template <class T>
  __device__ __forceinline__ void look(const Lane& at, const Masks<T>& masks, Index row,
                                       Index column) {
    own = masks.template counting<16>(column + at.lane % Step, row);
    any = ballot(own != 0) != 0;
    all = ballot(own != first_bits(16)) == 0;
  }
  __device__ __forceinline__ void spread(const Lane& at) {
#pragma unroll
    for (int n = 0; n < Step / 8; ++n)
      words[n] = (shuffle(own, at.column(n, 0)) | shuffle(own, at.column(n, 1)) << 16) >> at.group;
  }
  __device__ __forceinline__ bool operator()(int, int n, int e) const {
    return words[n] >> (16 * (e % 2) + 8 * (e / 2)) & 1;
  }
};

// Products of queries and keys to scores, in units of the exponential; -inf where they do not
// count.
template <class T, class Bits, int M, int N>
__device__ __forceinline__ void mask_scores(const Lane& at, const Masks<T>& masks, const Bits& bits,
                                            Index row, Index column, Tiles<Sum<T>, M, N>& scores) {
  using S = Sum<T>;
  const S scale = S(masks.a.scale) * exponent_unit<T>;
  const auto each = [&](const auto& change) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) change(m, n, e, scores.d[m][n][e]);
  };
  each([&](int, int, int, S& score) { score *= scale; });
  if (masks.a.mask_kind == Mask::additive)
    each([&](int m, int n, int e, S& score) {
      const Index r = row + at.row(m, e / 2), c = column + at.column(n, e % 2);
      if (bits(m, n, e)) score += Bits::of_keys ? masks.added(c, r) : masks.added(r, c);
    });
  if (!bits.all)
    each([&](int m, int n, int e, S& score) {
      if (!bits(m, n, e)) score = -infinity<S>;
    });
}

// Which of a lane's weights dropout keeps: bit 4 * (m * N + n) + e. One at a time, as many at once
// would need as many registers.
template <class Bits, int M, int N, class T>
__device__ __forceinline__ std::uint32_t kept_bits(const Lane& at, const Masks<T>& masks, Index row,
                                                   Index column) {
  static_assert(4 * M * N <= 32);
  std::uint32_t bits = 0;
#pragma unroll 1
  for (int i = 0; i < 2 * M * N; ++i) {
    const Index r = row + at.row(i / (2 * N), i % 2), c = column + at.column(i / 2 % N, 0);
    auto both = masks.kept(Bits::of_keys ? c : r, Bits::of_keys ? r : c);
    if (Bits::of_keys) both.second = masks.kept(c + 1, r).first;
    bits |= (std::uint32_t(both.first) | std::uint32_t(both.second) << 1) << 2 * i;
  }
  return bits;
}

}  // namespace fastrnn::cuda
