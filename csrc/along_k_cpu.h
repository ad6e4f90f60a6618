// Products of few rows with weights as they lie: packing those took as long or longer.
#pragma once

#include "micro_kernel_cpu.h"

namespace fastrnn::FASTRNN_ISA {

// Rows for which it is faster: each number of the product is a sum across lanes in the end, which
// costs the less the longer k is, and the wider a vector.
template <class T>
constexpr Index most_rows = width<T> * width<T> / 8;
template <class T>
bool worth_along_k(Index rows, Index k) {
  return rows <= smaller(most_rows<T>, k / 8);
}

// out [Rows][stride], of width / Rows columns each: a [Rows, lda] times as many rows of weight
// [.., k], of which `rows` there are; other columns are anything. Lane i of a sum takes every k
// that is i modulo the width (of pairs, those of pair i), however many rows there are.
template <class T, int Rows>
void sums_along_k(const T* a, Index lda, const T* weight, Index rows, Index k, Value<T>* out,
                  Index stride) {
  using V = Vec<Value<T>>;
  constexpr int columns = V::width / Rows;
  constexpr Index step = V::width * depth<T>;
  V x[V::width];
#pragma GCC unroll 16
  for (V& sum : x) sum = V(Value<T>(0));
  const T* from[columns];
#pragma GCC unroll 16
  for (int j = 0; j < columns; ++j) {
    from[j] = weight + (j < rows ? j : 0) * k;
    // Hidden from the compiler: two that it sees may be equal it multiplies once, rounding that,
    // and how it adds a number would depend on the rows.
    __asm__("" : "+r"(from[j]));
  }
  const auto add = [&](Index begin, Index count) __attribute__((always_inline)) {
    V r[Rows];
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) r[i] = load_groups<T>(a + i * lda + begin, count);
#pragma GCC unroll 16
    for (int j = 0; j < columns; ++j) {
      const V y = load_groups<T>(from[j] + begin, count);
#pragma GCC unroll 4
      for (int i = 0; i < Rows; ++i)
        x[i * columns + j] = Factor<Operand<T>>::multiply_add(x[i * columns + j], r[i], y);
    }
  };
  Index begin = 0;
  for (; begin + step <= k; begin += step) add(begin, step);
  if (begin < k) add(begin, k - begin);
  alignas(64) Value<T> sums[V::width];
  lane_sums(x).store(sums);
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i)
    __builtin_memcpy(out + i * stride, sums + i * columns, columns * sizeof(Value<T>));
}

// The same of any number of rows of a, and a vector of columns.
template <class T>
void vector_along_k(Index rows, const T* a, Index lda, const T* weight, Index columns, Index k,
                    Value<T>* out, Index stride) {
  const auto with = [&](auto count) __attribute__((always_inline)) {
    constexpr int each = width<T> / count();
    for (Index j = 0; j < smaller(columns, width<T>); j += each)
      sums_along_k<T, count()>(a, lda, weight + j * k, columns - j, k, out + j, stride);
    rows -= count(), a += count() * lda, out += count() * stride;
  };
  constexpr int most = smaller(width<T>, 4);
  while (rows >= most) with(std::integral_constant<int, most>());
  while (rows >= 2) with(std::integral_constant<int, 2>());
  if (rows == 1) with(std::integral_constant<int, 1>());
}

// This thread's share of a [rows, lda] weight^T, weight [Gates*H, k], in tiles of all rows and
// Units vectors of units with their gates side by side; each goes to finish(tile, 0, rows, number).
template <class T, int Gates, int Units, class Finish>
void product_along_k(const Team& team, Index rows, Index H, Index k, const T* a, Index lda,
                     const T* weight, const Finish& finish) {
  constexpr Index w = width<T>, NV = Gates * Units;
  alignas(64) Value<T> tile[larger(most_rows<T>, 1) * NV * w];
  const Index tiles = ceil_div(H, Units * w);
  for (Index t = team.begin(tiles); t < team.end(tiles); ++t) {
    for (Index v = 0; v < NV; ++v) {
      const Index unit = (t * Units + v / Gates) * w, row = v % Gates * H + unit;
      vector_along_k<T>(rows, a, lda, weight + row * k, H - unit, k, tile + v * w, NV * w);
    }
    finish(tile, 0, rows, t);
  }
}

// Rows of all steps, up to which a backward pass multiplies with weights as they lie, as below.
template <class T>
constexpr Index most_along_rows = rounds<T> ? 0 : 4;

// This thread's columns, whole vectors, of out [rows, padded n] = a [rows, lda] b, b [k, n]: some
// rows of b at a time, each read from end to end.
template <class T>
void product_along_rows(const Team& team, Index rows, Index n, Index k, const T* a, Index lda,
                        const T* b, T* out) {
  using V = Vec<T>;
  // With 8, gradients had up to 2.2 times torch's error at k = 4400.
  constexpr Index w = V::width, group = 16;
  const Index vectors = ceil_div(n, w);
  const Index begin = team.begin(vectors) * w, end = team.end(vectors) * w;
  for (Index i = 0; i < larger(k, 1); i += group)
    for (Index r = 0; r < rows; ++r) {
      T* const sums = out + r * vectors * w;
      const auto add = [&](auto count) __attribute__((always_inline)) {
        V x[group];
        for (Index j = 0; j < count; ++j) x[j] = V(a[r * lda + i + j]);
        for (Index column = begin; column < end; column += w) {
          V sum(T(0));
          for (Index j = 0; j < count; ++j)
            sum = sum + x[j] * V::load(b + (i + j) * n + column, n - column);
          if (i > 0) sum = V::load(sums + column) + sum;
          sum.store(sums + column);
        }
      };
      if (k - i >= group)
        add(std::integral_constant<Index, group>());
      else
        add(k - i);
    }
}

// The same; each vector of them goes to finish(row, column, vector), `sums` being scratch.
template <class T, class Finish>
void each_along_rows(const Team& team, Index rows, Index n, Index k, const T* a, Index lda,
                     const T* b, T* sums, const Finish& finish) {
  constexpr Index w = width<T>;
  const Index vectors = ceil_div(n, w);
  product_along_rows(team, rows, n, k, a, lda, b, sums);
  for (Index v = team.begin(vectors); v < team.end(vectors); ++v)
    for (Index r = 0; r < rows; ++r) finish(r, v * w, Vec<T>::load(sums + (r * vectors + v) * w));
}

}  // namespace fastrnn::FASTRNN_ISA
