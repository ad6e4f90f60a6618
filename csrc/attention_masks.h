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
  // The mask's own word on query i and key j.
  __device__ __forceinline__ bool attends(Index i, Index j) const {
    return bytes ? bytes[place(i, j)] != 0 : !(widen(values[place(i, j)]) == -infinity<Sum<T>>);
  }
  __device__ __forceinline__ bool inside(Index i, Index j) const {
    return i < a.queries && j < a.keys && !(a.causal && j > i);
  }

  // Whether dropout keeps the weights of query i and of key j, and of the one after an even j.
  struct Kept {
    bool first, second;
  };
  __device__ __forceinline__ Kept kept(Index i, Index j) const {
    std::uint32_t words[4];
    device::philox<1>(std::uint64_t(*a.seed), std::uint32_t(j / 4), pair, std::uint32_t(i), 0,
                      words);
    // Chosen, not indexed: an index would put the words into the device's local memory.
    const std::uint32_t first = j & 2 ? (j & 1 ? words[3] : words[2]) : (j & 1 ? words[1] : words[0]);
    return {first >= a.dropped_below, (j & 2 ? words[3] : words[1]) >= a.dropped_below};
  }
};

// Which of a warp's scores count, bit by bit, where its rows are queries and its columns keys.
template <int M, int Step>
struct QueryBits {
  static constexpr bool of_keys = false;
  static constexpr int W = (Step + 31) / 32;
  std::uint32_t words[M][2][W];  // of the lane's rows, shifted to its first column
  bool any, all;                 // of the warp's

  __device__ __forceinline__ bool operator()(int m, int n, int e) const {
    return words[m][e / 2][n / 4] >> (8 * (n % 4) + e % 2) & 1;
  }

  template <class T>
  __device__ __forceinline__ void look(const Lane& at, const Masks<T>& masks, Index row,
                                       Index column) {
    const Attention& a = masks.a;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const Index i = row + at.row(m, h);
        Index end = a.causal && i + 1 < a.keys ? i + 1 : a.keys;
        end = i < a.queries ? end - column : 0;
#pragma unroll
        for (int w = 0; w < W; ++w) {
          const Index bits = end - 32 * w;
          words[m][h][w] = bits <= 0 ? 0 : ~0u >> (bits < 32 ? 32 - bits : 0);
          if (Step < 32) words[m][h][w] &= (1u << Step % 32) - 1;
        }
        if (a.mask_kind == Mask::none) continue;
        const bool one_row = a.mask.row == 0;
#pragma unroll
        for (int r = 0; r < 8; ++r)
#pragma unroll
          for (int w = 0; w < W; ++w) {
            if (one_row && r > 0) continue;
            const Index query = row + 16 * m + 8 * h + r, key = column + 32 * w + at.lane;
            const bool there = query < a.queries && key < a.keys && at.lane < Step;
            const std::uint32_t votes = ballot(there && masks.attends(query, key));
            if (one_row || r == at.group) words[m][h][w] &= votes;
          }
      }
    sum_up(at);
  }

 private:
  __device__ __forceinline__ void sum_up(const Lane& at) {
    constexpr std::uint32_t full = Step < 32 ? (1u << Step % 32) - 1 : ~0u;
    std::uint32_t one = 0, every = full;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int w = 0; w < W; ++w) {
          one |= words[m][h][w], every &= words[m][h][w];
          words[m][h][w] >>= 2 * at.place;
        }
    any = ballot(one != 0) != 0;
    all = ballot(every != full) == 0;
  }
};

// The same where the rows are keys and the columns queries.
template <int M, int Step>
struct KeyBits {
  static constexpr bool of_keys = true;
  static constexpr int N = Step / 8;
  std::uint32_t words[M][N];  // 16 keys of the lane's even column, 16 of its odd one, shifted
  bool any, all;

  __device__ __forceinline__ bool operator()(int m, int n, int e) const {
    return words[m][n] >> (16 * (e % 2) + 8 * (e / 2)) & 1;
  }

  template <class T>
  __device__ __forceinline__ void look(const Lane& at, const Masks<T>& masks, Index row,
                                       Index column) {
    const Attention& a = masks.a;
    const Index last_key = row + 16 * M - 1, last_query = column + Step - 1;
    any = all = a.mask_kind == Mask::none && last_key < a.keys && last_query < a.queries &&
                !(a.causal && last_key > column);
    std::uint32_t one = 0, every = ~0u;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n) {
        words[m][n] = ~0u;
        if (all) continue;
#pragma unroll
        for (int two = 0; two < 4; ++two) {
          const Index i = column + 8 * n + 2 * two + at.lane / 16;
          const Index j = row + 16 * m + at.lane % 16;
          bool counts = masks.inside(i, j);
          if (counts && a.mask_kind != Mask::none) counts = masks.attends(i, j);
          const std::uint32_t votes = ballot(counts);
          one |= votes, every &= votes;
          if (two == at.place) words[m][n] = votes >> at.group;
        }
      }
    if (all) return;
    any = one != 0, all = every == ~0u;
  }
};

}  // namespace fastrnn::cuda
