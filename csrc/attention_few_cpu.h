// Products of one query with a head's keys and values as they lie: of few queries, packing them
// would be most of the work.
#pragma once

#include "packing_cpu.h"

namespace fastrnn::FASTRNN_ISA {

constexpr Index few_queries = 4;

// out [count] = the products of a [k] with rows `ld` apart. Writes whole vectors.
template <class T>
void row_products(const T* a, const T* rows, Index ld, Index count, Index k, T* out) {
  using V = Vec<T>;
  constexpr Index w = V::width;
  for (Index first = 0; first < count; first += w) {
    V sums[w];
#pragma GCC unroll 16
    for (Index lane = 0; lane < w; ++lane) sums[lane] = V(T(0));
    const Index last = count - 1 - first;
    for (Index c = 0; c < k; c += w) {
      const V x = V::load(a + c, k - c);
#pragma GCC unroll 16
      for (Index lane = 0; lane < w; ++lane)
        sums[lane] = sums[lane] + x * V::load(rows + (first + smaller(lane, last)) * ld + c, k - c);
    }
    lane_sums(sums).store(out + first);
  }
}

// out [width] = or += the sum of rows `ld` apart, each times its weight.
template <class T>
void weighted_sum(const T* weights, const T* rows, Index ld, Index count, Index width, T* out,
                  bool add) {
  using V = Vec<T>;
  constexpr Index w = V::width, abreast = 4;
  for (Index c = 0; c < width; c += abreast * w) {
    // Even rows' sums and odd rows': one would wait for itself.
    V even[abreast], odd[abreast];
    for (Index v = 0; v < abreast; ++v) even[v] = odd[v] = V(T(0));
    const Index left = width - c;
    const auto take = [&](Index i, V* sums) {
      const V weight(weights[i]);
#pragma GCC unroll 4
      for (Index v = 0; v < abreast; ++v)
        if (v * w < left)
          sums[v] = sums[v] + weight * V::load(rows + i * ld + c + v * w, left - v * w);
    };
    Index i = 0;
    for (; i + 2 <= count; i += 2) take(i, even), take(i + 1, odd);
    if (i < count) take(i, even);
    for (Index v = 0; v < abreast && v * w < left; ++v) {
      T* const to = out + c + v * w;
      const V sum = even[v] + odd[v];
      (add ? V::load(to, left - v * w) + sum : sum).store(to, left - v * w);
    }
  }
}

}  // namespace fastrnn::FASTRNN_ISA
