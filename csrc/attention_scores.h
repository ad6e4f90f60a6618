// A warp's scores on their way to weights: which of them count, their mask, which of the weights
// dropout keeps.
#pragma once

#include "attention_masks.h"

namespace fastrnn::cuda {

// Which of a lane's scores count: of 16 M rows and 8 N columns, by words that the two kinds below
// fill. Where all of a warp's count, nobody asks.
template <int M, int N>
struct QueryScores {
  static constexpr bool of_keys = false;
  static constexpr int Count = N < 4 ? 8 * N : 32;
  bool all;
  std::uint32_t words[M][2][8 * N / Count];  // of the lane's rows, from its first column on
  __device__ __forceinline__ bool operator()(int m, int n, int e) const {
    return words[m][e / 2][8 * n / Count] >> (8 * n % Count + e % 2) & 1;
  }
};

template <int M, int N>
struct KeyScores {
  static constexpr bool of_keys = true;
  bool all;
  std::uint32_t words[M][N];  // 16 keys of the lane's even column, 16 of its odd one
  __device__ __forceinline__ bool operator()(int m, int n, int e) const {
    return words[m][n] >> (16 * (e % 2) + 8 * (e / 2)) & 1;
  }
};

// The same for a step of columns, lane by lane a query's keys: what is found one step ahead.
// A warp's rows are queries and its columns keys.
template <int M, int Step>
struct QueryBits {
  using Scores = QueryScores<M, Step / 8>;
  std::uint32_t own[Step / Scores::Count];  // of query `lane` of the rows
  bool any, all;                            // of the warp's scores count

  template <class T>
  __device__ __forceinline__ void look(const Lane& at, const Masks<T>& masks, Index row,
                                       Index column) {
    constexpr int Count = Scores::Count;
    any = all = masks.all_count(row, 16 * M, column, Step);
    if (all) return;
    std::uint32_t some = 0, every = ~0u;
#pragma unroll
    for (int w = 0; w < Step / Count; ++w) {
      own[w] = masks.template counting<Count>(row + at.lane % (16 * M), column + w * Count);
      some |= own[w], every &= own[w];
    }
    any = ballot(some != 0) != 0;
    all = ballot(every != first_bits(Count)) == 0;
  }
  __device__ __forceinline__ Scores scores(const Lane& at) const {
    Scores found;
    found.all = all;
    if (all) return found;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int w = 0; w < Step / Scores::Count; ++w)
          found.words[m][h][w] = shuffle(own[w], at.row(m, h)) >> 2 * at.place;
    return found;
  }
};

// The other way round: a warp's rows are keys and its columns queries.
template <int M, int Step>
struct KeyBits {
  std::uint32_t own;  // of query `lane` of the columns
  bool any, all;

  template <class T>
  __device__ __forceinline__ void look(const Lane& at, const Masks<T>& masks, Index row,
                                       Index column) {
    any = all = masks.all_count(column, Step, row, 16 * M);
    if (all) return;
    own = masks.template counting<16 * M>(column + at.lane % Step, row);
    any = ballot(own != 0) != 0;
    all = ballot(own != first_bits(16 * M)) == 0;
  }
  // Those of 8 N columns from `from` on.
  template <int N>
  __device__ __forceinline__ KeyScores<M, N> scores(const Lane& at, int from) const {
    KeyScores<M, N> found;
    found.all = all;
    if (all) return found;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const std::uint32_t even = shuffle(own, from + at.column(n, 0)) >> at.group,
                          odd = shuffle(own, from + at.column(n, 1)) >> at.group;
#pragma unroll
      for (int m = 0; m < M; ++m)
        found.words[m][n] = (even >> 16 * m & 0xFFFF) | odd >> 16 * m << 16;
    }
    return found;
  }
};

// Products of queries and keys to scores, -inf where they do not count. Returned is the factor
// that makes them units of the exponential: an exponential multiplies and subtracts at once.
template <class T, class Scores, int M, int N>
__device__ __forceinline__ Sum<T> mask_scores(const Lane& at, const Masks<T>& masks,
                                              const Scores& count, Index row, Index column,
                                              Tiles<Sum<T>, M, N>& scores) {
  using S = Sum<T>;
  const S scale = S(masks.a.scale) * exponent_unit<T>;
  const bool added = masks.a.mask_kind == Mask::additive;
  // Only a factor above 0 leaves scores in their order and -inf as it is.
  const bool later = scale > 0 && !added;
  if (!later) scores.each([&](int, int, int, S& score) { score *= scale; });
  if (added) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n) {
        // A branch to each tile: the loads of all would take the registers of twice as many scores.
        if (!ballot(count.all || count(m, n, 0) || count(m, n, 1) || count(m, n, 2) ||
                    count(m, n, 3)))
          continue;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (!count.all && !count(m, n, e)) continue;
          if constexpr (Scores::of_keys)
            scores.d[m][n][e] +=
                masks.added(column + at.column(n, e % 2), row + at.group, 16 * m + e / 2 * 8);
          else
            scores.d[m][n][e] +=
                masks.added(row + at.row(m, e / 2), column + 2 * at.place, 8 * n + e % 2);
        }
      }
  }
  if (!count.all)
    scores.each([&](int m, int n, int e, S& score) {
      if (!count(m, n, e)) score = -infinity<S>;
    });
  return later ? scale : S(1);
}

// Which of a lane's weights dropout keeps: of each 16 rows, bit 4 * n + e. One at a time, as many
// at once would need as many registers.
template <int M>
struct Kept {
  std::uint32_t words[M];
  __device__ __forceinline__ bool operator()(int m, int n, int e) const {
    return words[m] >> (4 * n + e) & 1;
  }
};
template <class Scores, int M, int N, class T>
__device__ __forceinline__ Kept<M> kept_bits(const Lane& at, const Masks<T>& masks, Index row,
                                             Index column) {
  static_assert(4 * N <= 32);
  Kept<M> kept;
#pragma unroll
  for (int m = 0; m < M; ++m) {
    std::uint32_t bits = 0;
#pragma unroll 1
    for (int i = 0; i < 2 * N; ++i) {
      const Index r = row + at.row(m, i % 2), c = column + at.column(i / 2, 0);
      auto both = masks.kept(Scores::of_keys ? c : r, Scores::of_keys ? r : c);
      if (Scores::of_keys) both.second = masks.kept(c + 1, r).first;
      bits |= (std::uint32_t(both.first) | std::uint32_t(both.second) << 1) << 2 * i;
    }
    kept.words[m] = bits;
  }
  return kept;
}

}  // namespace fastrnn::cuda
