// Matrices into panels of NV vectors of columns, [panels][K][NV * width], which a product streams.
#pragma once

#include "simd.h"
#include "team.h"

namespace fastrnn::FASTRNN_ISA {

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }
constexpr Index smaller(Index a, Index b) { return a < b ? a : b; }
constexpr Index larger(Index a, Index b) { return a > b ? a : b; }

template <class T>
constexpr int width = Vec<T>::width;

template <int NV>
constexpr int tile_rows = accumulators / NV;

// One vector of columns, transposed: out[k][0..width) = source[lane * ld + k], zeros from `lanes`
// on; out's rows are `stride` apart.
template <class T>
void pack_columns_transposed(const T* source, Index ld, Index lanes, Index k, T* out,
                             Index stride) {
  constexpr Index w = width<T>;
  lanes = lanes < 0 ? 0 : smaller(lanes, w);
  for (Index k0 = 0; k0 < k; k0 += w) {
    const Index depth = smaller(w, k - k0);
    Vec<T> square[w];
    if (lanes == w && depth == w) {  // as a rule
#pragma GCC unroll 16
      for (Index lane = 0; lane < w; ++lane) square[lane] = Vec<T>::load(source + lane * ld + k0);
    } else {
#pragma GCC unroll 16
      for (Index lane = 0; lane < w; ++lane)
        square[lane] = Vec<T>::load(source + lane * ld + k0, lane < lanes ? depth : 0);
    }
    transpose(square);
    if (depth == w) {
#pragma GCC unroll 16
      for (Index i = 0; i < w; ++i) square[i].store(out + (k0 + i) * stride);
    } else {
#pragma GCC unroll 16
      for (Index i = 0; i < w; ++i)
        if (i < depth) square[i].store(out + (k0 + i) * stride);
    }
  }
}

// B^T [n, k] row-major to panels: natural column order.
template <class T, int NV>
void pack_transposed(const Team& team, const T* source, Index n, Index k, T* packed) {
  constexpr Index w = width<T>;
  const Index vectors = ceil_div(n, NV * w) * NV;
  for (Index v = team.begin(vectors); v < team.end(vectors); ++v)
    pack_columns_transposed(source + v * w * k, k, n - v * w, k,
                            packed + (v / NV) * k * NV * w + (v % NV) * w, NV * w);
}

// B [k, n] to panels; row(i) is the address of its row i.
template <class T, int NV, class Row>
void pack_rows(const Team& team, Index n, Index k, const Row& row, T* packed) {
  constexpr Index w = width<T>;
  const Index panels = ceil_div(n, NV * w);
  for (Index i = team.begin(k); i < team.end(k); ++i) {
    const T* source = row(i);
    for (Index panel = 0; panel < panels; ++panel) {
      T* out = packed + (panel * k + i) * NV * w;
      for (Index v = 0; v < NV; ++v) {
        const Index column = (panel * NV + v) * w, left = n - column;
        Vec<T>::load(source + column, left < 0 ? 0 : left).store(out + v * w);
      }
    }
  }
}

}  // namespace fastrnn::FASTRNN_ISA
