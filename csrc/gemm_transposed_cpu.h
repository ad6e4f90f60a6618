// The product of a matrix transposed: a sum over rows, as a weight's gradient is.
#pragma once

#include "gemm_cpu.h"

namespace fastrnn::FASTRNN_ISA {

// A product's B, packed, and where C = A B goes: C row-major [M, columns].
template <class T>
struct Target {
  const Operand<T>* packed;
  Index columns;
  T* out;
};

// out[n] = the sums of the columns of operands a [rows, n], its groups of rows `stride` groups
// apart, or += if `accumulate`; in two levels, since one long sum would round each small term
// against the whole.
template <class T>
void add_column_sums(const Operand<T>* a, Index stride, Index rows, Index n, bool accumulate,
                     T* out) {
  using V = Vec<Value<T>>;
  constexpr Index w = width<T>, level = 32;
  for (Index column = 0; column < n; column += w) {
    V sum = V::load(out + column, accumulate ? n - column : 0);
    for (Index row = 0; row < rows; row += level) {
      V part(Value<T>(0));
      for (Index i = row; i < smaller(row + level, rows); i += depth<T>) {
        const Operand<T>* const group = a + (i / depth<T> * stride + column) * depth<T>;
        if constexpr (depth<T> == 1) {
          part = part + V::load(group);
        } else {
          Words pairs;
          __builtin_memcpy(&pairs, group, sizeof pairs);
          part = part + V(of_pair(pairs, 0)) + V(of_pair(pairs, 1));
        }
      }
      sum = sum + part;
    }
    sum.store(out + column, n - column);
  }
}

// Rows that a thread's part of a transposed product stays in the first-level cache for. Where C is
// rounded it must be added up before: then all rows are one slice.
constexpr Index slice_rows = 768;
template <class T>
constexpr Index slices_of(Index rows) {
  return rounds<T> ? 1 : ceil_div(rows, slice_rows);
}
template <class T>
constexpr Index largest_slice(Index rows) {
  return ceil_div(rows, larger(1, slices_of<T>(rows)));
}

template <class T, int NV>
constexpr Index scratch_stride = ceil_div(tile_rows<NV>, width<T>) * width<T>;
template <class T, int NV>
constexpr Index transposed_scratch(Index rows) {
  return padded<T>(largest_slice<T>(rows)) * scratch_stride<T, NV>;
}

// Sums of so few terms that storing them is the work: row by row, as memory likes to be written.
constexpr Index few_terms = 4;

// rows of target.out from `row0` on = a^T B, of a [k, lda]'s columns from `row0` on.
template <class T, int NV>
void few_rows(const T* a, Index lda, Index row0, Index rows, Index k, const Target<T>& target) {
  using V = Vec<Value<T>>;
  constexpr Index w = width<T>;
  for (Index row = row0; row < row0 + rows; ++row) {
    T* const out = target.out + row * target.columns;
    for (Index column = 0; column < target.columns; column += w) {
      const Index v = column / w;
      const T* const b = target.packed + (v - v % NV) * k * w + v % NV * w;
      V sum(Value<T>(0));
      for (Index i = 0; i < k; ++i)
        sum = Factor<T>::multiply_add(sum, V(a[i * lda + row]), V::load(b + i * NV * w));
      sum.store(out + column, target.columns - column);
    }
  }
}

// This thread's rows of C = A^T B for several B, or += if `add`: `a` is [k, lda], k a slice of all
// rows, and C's row m is a's column m. `sums` [m], if not null, gets the sums of a's columns.
// `scratch` holds `transposed_scratch` values, the thread's own.
template <class T, int NV>
void transposed_product(const Team& team, const T* a, Index lda, Index m, Index k, bool add,
                        const Target<T>* targets, int count, Operand<T>* scratch, T* sums) {
  constexpr Index w = width<T>, panel_width = NV * w, stride = scratch_stride<T, NV>;
  constexpr Index group = stride * depth<T>;
  alignas(64) Value<T> tile[tile_rows<NV> * panel_width];
  const Index first = team.begin(m), parts = ceil_div(k, gradient_slice);
  const RowBlocks<NV> blocks(team.end(m) - first);
  for (Index block = 0; block < blocks.count; ++block) {
    const Index row0 = first + blocks.start(block);
    const Index rows = first + blocks.start(block + 1) - row0;
    const auto at = [&](Index i) __attribute__((always_inline)) { return a + i * lda + row0; };
    for (Index i = 0; i < k; i += depth<T>)
      for (Index r = 0; r < rows; r += w) {
        const auto columns = zip_rows<T>([&](Index j) { return at(i + j) + r; }, k - i, rows - r);
        __builtin_memcpy(scratch + i * stride + r * depth<T>, &columns.v, sizeof columns.v);
      }
    if (sums) add_column_sums<T>(scratch, stride, k, rows, add, sums + row0);
    for (const Target<T>* target = targets; target < targets + count; ++target) {
      if constexpr (depth<T> == 1 && !widens<T>)
        if (k <= few_terms && !add) {
          few_rows<T, NV>(a, lda, row0, rows, k, *target);
          continue;
        }
      const Index panels = ceil_div(target->columns, panel_width);
      for (Index panel = 0; panel < panels; ++panel) {
        const Operand<T>* b = target->packed + panel * padded<T>(k) * panel_width;
        const int used = vectors_used<NV>(ceil_div(target->columns, w) - panel * NV);
        for (Index i = 0; i < parts; ++i) {
          const Index begin = i * gradient_slice;
          tile_product<Operand<T>, NV>(used, rows, scratch + begin * stride, depth<T>, group,
                                       b + begin * panel_width, smaller(gradient_slice, k - begin),
                                       tile, i > 0, panel_width, m);
        }
        store_tile<T, NV>(tile, rows, panel, target->out + row0 * target->columns, target->columns,
                          target->columns, add);
      }
    }
  }
}

}  // namespace fastrnn::FASTRNN_ISA
