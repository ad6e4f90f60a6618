// Matrices into panels of NV vectors of columns, [panels][K][NV * width], which a product streams.
// Of Bf16, pairs: [panels][ceil(K / 2)][NV * width][2], or floats where no instruction multiplies
// pairs.
#pragma once

#include "lanes.h"
#include "team.h"

namespace fastrnn::FASTRNN_ISA {

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }
constexpr Index smaller(Index a, Index b) { return a < b ? a : b; }
constexpr Index larger(Index a, Index b) { return a > b ? a : b; }

// How a T is stored: what it is computed in, what products multiply, and the number as wide as the
// neighbours along k that stay together in a panel.
template <class T>
struct Storage {
  typedef T Value;
  typedef T Operand;
  typedef T Group;
};

template <>
struct Storage<Bf16> {
  typedef float Value;
#ifdef __AVX512BF16__
  typedef Bf16 Operand;
#else
  typedef float Operand;
#endif
  typedef float Group;
};

template <class T>
using Value = typename Storage<T>::Value;
template <class T>
using Operand = typename Storage<T>::Operand;
template <class T>
using Group = typename Storage<T>::Group;

template <class T>
constexpr int width = Vec<Value<T>>::width;
template <class T>
constexpr Index depth = sizeof(Group<T>) / sizeof(Operand<T>);
template <class T>
constexpr bool rounds = sizeof(T) < sizeof(Value<T>);
template <class T>
constexpr bool widens = sizeof(T) < sizeof(Operand<T>);

// k in whole groups.
template <class T>
constexpr Index padded(Index k) {
  return ceil_div(k, depth<T>) * depth<T>;
}

// Vectors of a panel that a kernel multiplies at once. Four of 16 registers leave too few rows, so
// such a panel is stored in halves, one after the other.
template <int NV>
constexpr int part_vectors = NV == 4 && accumulators < 16 ? 2 : NV;

template <int NV>
constexpr int tile_rows = accumulators / part_vectors<NV>;

// The first n numbers at p, not more than a vector of groups, and zeros.
template <class T>
FASTRNN_INLINE Vec<Group<T>> load_groups(const T* p, Index n) {
  if constexpr (depth<T> == 1) {
    return Vec<Group<T>>::load(p, n);
  } else {
    Words words;
    if (n >= 2 * float_width) {
      __builtin_memcpy(&words, p, sizeof words);
      return Floats(words);
    }
    const Halves low = load_halves(p, n), high = load_halves(p + float_width, n - float_width);
    __builtin_memcpy(&words, &low, sizeof low);
    __builtin_memcpy(reinterpret_cast<char*>(&words) + sizeof low, &high, sizeof high);
    return Floats(words);
  }
}

// A vector of columns of one group of rows: row(i) is the address of row i < rows, the others are
// zeros.
template <class T, class Row>
FASTRNN_INLINE Vec<Group<T>> zip_rows(const Row& row, Index rows, Index lanes) {
  if constexpr (depth<T> == 1)
    return Vec<Group<T>>::load(row(0), lanes);
  else
    return Floats(
        zip(load_halves(row(0), lanes), rows > 1 ? load_halves(row(1), lanes) : Halves{}));
}

// One vector of columns, transposed: out[k][0..width) = source[lane * ld + k] in groups along k,
// zeros from `lanes` on; out's rows of groups are `stride` numbers apart.
template <class T>
void pack_columns_transposed(const T* source, Index ld, Index lanes, Index k, Operand<T>* out,
                             Index stride) {
  using G = Vec<Group<T>>;
  constexpr Index w = width<T>, block = w * depth<T>;
  stride *= depth<T>;
  lanes = lanes < 0 ? 0 : smaller(lanes, w);
  for (Index k0 = 0; k0 < k; k0 += block) {
    const Index count = smaller(block, k - k0);
    G square[w];
    if (lanes == w && count == block) {  // as a rule
#pragma GCC unroll 16
      for (Index lane = 0; lane < w; ++lane)
        square[lane] = load_groups<T>(source + lane * ld + k0, block);
    } else {
#pragma GCC unroll 16
      for (Index lane = 0; lane < w; ++lane)
        square[lane] = load_groups<T>(source + lane * ld + k0, lane < lanes ? count : 0);
    }
    transpose(square);
    Operand<T>* const here = out + k0 / depth<T> * stride;
    if (count == block) {
#pragma GCC unroll 16
      for (Index i = 0; i < w; ++i) __builtin_memcpy(here + i * stride, &square[i].v, sizeof(G));
    } else {
#pragma GCC unroll 16
      for (Index i = 0; i < w; ++i)
        if (i * depth<T> < count) __builtin_memcpy(here + i * stride, &square[i].v, sizeof(G));
    }
  }
}

// Numbers of B [k, n] in panels.
template <class T, int NV>
constexpr Index panel_size(Index n, Index k) {
  return ceil_div(n, NV * width<T>) * NV * width<T> * padded<T>(k);
}

// B^T [n, k] row-major to panels: natural column order.
template <class T, int NV>
void pack_transposed(const Team& team, const T* source, Index n, Index k, Operand<T>* packed) {
  constexpr Index w = width<T>;
  const Index vectors = ceil_div(n, NV * w) * NV;
  for (Index v = team.begin(vectors); v < team.end(vectors); ++v)
    pack_columns_transposed(source + v * w * k, k, n - v * w, k,
                            packed + (v / NV) * padded<T>(k) * NV * w + v % NV * w * depth<T>,
                            NV * w);
}

// B [k, n] to panels; row(i) is the address of its row i. Where a thread's part stays in its cache,
// threads share the panels as those of a product do, which then need not fetch them from another
// core; else the rows, which are then read in order.
template <class T, int NV, class Row>
void pack_rows(const Team& team, Index n, Index k, const Row& row, Operand<T>* packed) {
  constexpr Index w = width<T>;
  const Index panels = ceil_div(n, NV * w), groups = ceil_div(k, depth<T>);
  const bool near =
      panels >= team.size && n * k * Index(sizeof(Operand<T>)) <= near_bytes() * team.size;
  const Team of_panels = near ? team : team.alone(), of_groups = near ? team.alone() : team;
  const Index first_vector = of_panels.begin(panels) * NV, last_vector = of_panels.end(panels) * NV;
  for (Index group = of_groups.begin(groups); group < of_groups.end(groups); ++group) {
    const Index first = group * depth<T>;
    for (Index v = first_vector; v < last_vector; ++v) {
      const auto at = [&](Index i)
                          __attribute__((always_inline)) { return row(first + i) + v * w; };
      const auto columns = zip_rows<T>(at, k - first, n - v * w);
      Operand<T>* const out = packed + ((v / NV * groups + group) * NV + v % NV) * w * depth<T>;
      __builtin_memcpy(out, &columns.v, sizeof columns.v);
    }
  }
}

// This thread's share of copying `count` numbers, which may change how they are stored.
template <class From, class To>
void copy(const Team& team, Index count, const From* from, To* to) {
  using V = Vec<Value<From>>;
  const Index end = team.end(count);
  for (Index i = team.begin(count); i < end; i += V::width)
    V::load(from + i, end - i).store(to + i, end - i);
}

// The first n lanes rounded to T's, as operands.
template <class T>
FASTRNN_INLINE void store_operand(Vec<Value<T>> x, Operand<T>* to, Index n) {
  if constexpr (widens<T>) x.v = widen(narrow(x.v));
  x.store(to, n);
}

// The operands that a row's n numbers are.
template <class T>
FASTRNN_INLINE void widen_row(const T* row, Index n, Operand<T>* to) {
  for (Index i = 0; i < n; i += width<T>) load_groups<T>(row + i, n - i).store(to + i, n - i);
}

template <class T>
void clear(const Team& team, Index count, T* to) {
  const Index begin = team.begin(count), end = team.end(count);
  __builtin_memset(to + begin, 0, (end - begin) * sizeof(T));
}

}  // namespace fastrnn::FASTRNN_ISA
