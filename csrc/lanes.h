// What moves numbers between the lanes of vectors: transpositions, and sums of lanes.
#pragma once

#include <utility>

#include "simd.h"

namespace fastrnn::FASTRNN_ISA {

// Lanes of a (0 to width - 1) and b (from width on).
template <class T, std::size_t... From>
FASTRNN_INLINE auto shuffle(typename Vec<T>::Register a, typename Vec<T>::Register b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, From...);
#else  // gcc has the former from 12 on only
  return __builtin_shuffle(a, b, typename Constants<T>::Bits{From...});
#endif
}

// One of log2(width) rounds of a transposition: swaps the off-diagonal blocks of `Block` lanes
// between the rows x[i] and x[i + Block].
template <int Block, class T, std::size_t... Lane>
FASTRNN_INLINE void swap_blocks(Vec<T>* x, std::index_sequence<Lane...>) {
  constexpr int w = Vec<T>::width;
#pragma GCC unroll 16
  for (int i = 0; i < w; ++i) {
    if (i & Block) continue;
    const auto a = x[i].v, b = x[i + Block].v;
    x[i].v = shuffle<T, (Lane & Block ? w + Lane - Block : Lane)...>(a, b);
    x[i + Block].v = shuffle<T, (Lane & Block ? w + Lane : Lane + Block)...>(a, b);
  }
}

// x[width] as rows of a square, transposed in registers.
template <class T, int Block = Vec<T>::width / 2>
FASTRNN_INLINE void transpose(Vec<T>* x) {
  if constexpr (Block > 0) {
    swap_blocks<Block>(x, std::make_index_sequence<Vec<T>::width>());
    transpose<T, Block / 2>(x);
  }
}

// All lanes of x combined, by halves.
template <int Block, class T, class Combine, std::size_t... Lane>
FASTRNN_INLINE Vec<T> fold(Vec<T> x, const Combine& combine, std::index_sequence<Lane...>) {
  return combine(x, Vec<T>(shuffle<T, (Lane ^ Block)...>(x.v, x.v)));
}

template <class T, class Combine, int Block = Vec<T>::width / 2>
FASTRNN_INLINE T across(Vec<T> x, const Combine& combine) {
  if constexpr (Block > 0)
    return across<T, Combine, Block / 2>(
        fold<Block>(x, combine, std::make_index_sequence<Vec<T>::width>()), combine);
  else
    return x.v[0];
}

// Lane i: the sum of x[i]'s lanes, for all vectors of x[width] at once.
template <int Block, class T, std::size_t... Lane>
FASTRNN_INLINE void pair_sums(Vec<T>* x, std::index_sequence<Lane...>) {
  constexpr int w = Vec<T>::width;
#pragma GCC unroll 8
  for (int i = 0; i < Block; ++i) {
    const auto a = x[i].v, b = x[i + Block].v;
    x[i] = shuffle<T, (Lane & Block ? w + Lane : Lane)...>(a, b) +
           shuffle<T, (Lane & Block ? w + (Lane ^ Block) : Lane ^ Block)...>(a, b);
  }
}

template <class T, int Block = Vec<T>::width / 2>
FASTRNN_INLINE Vec<T> lane_sums(Vec<T>* x) {
  if constexpr (Block > 0) {
    pair_sums<Block>(x, std::make_index_sequence<Vec<T>::width>());
    return lane_sums<T, Block / 2>(x);
  } else {
    return x[0];
  }
}

struct Add {
  template <class T>
  FASTRNN_INLINE Vec<T> operator()(Vec<T> a, Vec<T> b) const {
    return a + b;
  }
};

}  // namespace fastrnn::FASTRNN_ISA
