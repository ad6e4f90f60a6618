// Products with so few columns that a panel of them would be mostly empty.
#pragma once

#include "packing_cpu.h"

namespace fastrnn::FASTRNN_ISA {

// The most columns that are taken so.
template <class T>
constexpr int few = Vec<T>::width / 4;

// out [rows, ..ld] = a [rows, k] b^T, b [columns, k]: four rows' sums at a time, which one vector
// holds. Writes `few` columns, the last of them anything if there are less.
template <class T>
void few_products(const T* a, Index lda, Index rows, const T* b, Index ldb, Index columns, Index k,
                  T* out, Index ld) {
  using V = Vec<T>;
  constexpr int w = V::width, n = few<T>;
  for (Index r = 0; r < rows; r += 4) {
    V x[w];
    for (int i = 0; i < w; ++i) x[i] = V(T(0));
    for (Index c = 0; c < k; c += w) {
      V y[n + 1];
#pragma GCC unroll 4
      for (int j = 0; j < n; ++j) y[j] = V::load(b + (j < columns ? j : 0) * ldb + c, k - c);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const V row = V::load(a + smaller(r + i, rows - 1) * lda + c, k - c);
#pragma GCC unroll 4
        for (int j = 0; j < n; ++j) x[i * n + j] = x[i * n + j] + row * y[j];
      }
    }
    alignas(64) T sums[w];
    lane_sums(x).store(sums);
    for (int i = 0; i < 4; ++i)
      __builtin_memcpy(out + smaller(r + i, rows - 1) * ld, sums + i * n, n * sizeof(T));
  }
}

}  // namespace fastrnn::FASTRNN_ISA
