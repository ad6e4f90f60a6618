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
                     Value<T>* out) {
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

// Blocks of C's rows that take each part of B in turn, while it is in the first-level cache. Long
// columns of A fill the caches alone: then one.
constexpr Index most_blocks = 4;
template <class T>
constexpr Index blocks_abreast(Index rows) {
  return largest_slice<T>(rows) <= slice_rows ? most_blocks : 1;
}

template <class T, int NV>
constexpr Index transposed_scratch(Index rows) {
  return blocks_abreast<T>(rows) * padded<T>(largest_slice<T>(rows)) * scratch_stride<T, NV>;
}

// A block of A's columns, which are C's rows, and its tile of C.
template <class T, int NV>
struct ColumnBlock {
  using V = Vec<Value<T>>;
  static constexpr Index w = width<T>, panel_width = NV * w, stride = scratch_stride<T, NV>;

  Index row0, rows;
  Operand<T>* packed;  // [k][stride] in groups along k
  alignas(64) Value<T> tile[tile_rows<NV> * panel_width];

  // The group of A's rows from i < k on.
  FASTRNN_INLINE void pack(const T* a, Index lda, Index i, Index k) {
    for (Index r = 0; r < rows; r += w) {
      const auto columns = zip_rows<T>(
          [&](Index j) __attribute__((always_inline)) { return a + (i + j) * lda + row0 + r; },
          k - i, rows - r);
      __builtin_memcpy(packed + i * stride + r * depth<T>, &columns.v, sizeof columns.v);
    }
  }

  void add_sums(Index k, bool add, T* sums) const {
    alignas(64) Value<T> of_columns[stride];
    for (Index r = 0; r < rows; r += w)
      V::load(sums + row0 + r, add ? rows - r : 0).store(of_columns + r);
    add_column_sums<T>(packed, stride, k, rows, add, of_columns);
    for (Index r = 0; r < rows; r += w) V::load(of_columns + r).store(sums + row0 + r, rows - r);
  }

  // Where the tile goes.
  T* place(const Target<T>& target, Index panel) const {
    return target.out + row0 * target.columns + panel * panel_width;
  }

  // Has a share of the tile's place fetched: stores that miss all at once hold up what follows.
  FASTRNN_INLINE void ask(const Target<T>& target, Index panel, Index part, Index parts) const {
    for (Index r = rows * part / parts; r < rows * (part + 1) / parts; ++r) {
      const T* const row = place(target, panel) + r * target.columns;
      for (Index v = 0; v < NV; ++v) __builtin_prefetch(row + v * w, 1);
      __builtin_prefetch(row + panel_width - 1, 1);
    }
  }

  void store(const Target<T>& target, Index panel, bool add) const {
    const Index left = target.columns - panel * panel_width;
    for (Index r = 0; r < rows; ++r)
      for (Index v = 0; v < NV && v * w < left; ++v) {
        T* const to = place(target, panel) + r * target.columns + v * w;
        V sum = V::load(tile + (r * NV + v) * w);
        if (add) sum = V::load(to, left - v * w) + sum;
        sum.store(to, left - v * w);
      }
  }
};

// This thread's rows of C = A^T B for several B, or += if `add`: `a` is [k, lda], k a slice of all
// rows, and C's row m is a's column m. `sums` [m], if not null, gets the sums of a's columns.
// `scratch` holds `transposed_scratch` values, the thread's own.
template <class T, int NV>
void transposed_product(const Team& team, const T* a, Index lda, Index m, Index k, bool add,
                        const Target<T>* targets, int count, Operand<T>* scratch, T* sums) {
  using Block = ColumnBlock<T, NV>;
  constexpr Index panel_width = Block::panel_width, group = Block::stride * depth<T>;
  Block blocks[most_blocks];
  const Index first = team.begin(m), parts = ceil_div(k, gradient_slice);
  // To memory, C is written a tenth slower by several blocks in turn.
  const bool far = m * targets->columns * Index(sizeof(T)) > far_bytes;
  const Index abreast = far ? 1 : blocks_abreast<T>(k);
  const RowBlocks<NV> all(team.end(m) - first);
  for (Index block = 0, many; block < all.count; block += many) {
    many = smaller(abreast, all.count - block);
    for (Index b = 0; b < many; ++b) {
      blocks[b].row0 = first + all.start(block + b);
      blocks[b].rows = first + all.start(block + b + 1) - blocks[b].row0;
      blocks[b].packed = scratch + b * padded<T>(k) * Block::stride;
    }
    for (Index i = 0; i < k; i += depth<T>)
      for (Index b = 0; b < many; ++b) blocks[b].pack(a, lda, i, k);
    for (Index b = 0; b < many && sums; ++b) blocks[b].add_sums(k, add, sums);
    for (const Target<T>* target = targets; target < targets + count; ++target)
      for (Index panel = 0; panel * panel_width < target->columns; ++panel) {
        const Operand<T>* const packed = target->packed + panel * padded<T>(k) * panel_width;
        const int used =
            vectors_used<NV>(ceil_div(target->columns - panel * panel_width, width<T>));
        for (Index part = 0; part < parts; ++part) {
          const Index begin = part * gradient_slice;
          for (Index b = 0; b < many; ++b) {
            blocks[b].ask(*target, panel, part, parts);
            tile_product<Operand<T>, NV>(
                used, blocks[b].rows, blocks[b].packed + begin * Block::stride, depth<T>, group,
                packed + begin * panel_width, smaller(gradient_slice, k - begin), blocks[b].tile,
                part > 0, panel_width, m);
          }
        }
        for (Index b = 0; b < many; ++b) blocks[b].store(*target, panel, add);
      }
  }
}

}  // namespace fastrnn::FASTRNN_ISA
