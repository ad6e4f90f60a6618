// Products on packed panels: C[M, N] = A[M, K] B[K, N] with B cut into panels of NV vectors of
// columns, [panels][K][NV * width], so that the inner loop streams one panel while a tile of
// rows x NV accumulators stays in registers.
//
// A sum takes k in the same order whatever the tile or the number of threads: same bits.
#pragma once

#include "packing_cpu.h"

namespace fastrnn::FASTRNN_ISA {

// The rows of a product cut into blocks of nearly equal size, at most `tile_rows` each.
template <int NV>
struct RowBlocks {
  explicit RowBlocks(Index rows) : count(ceil_div(rows, tile_rows<NV>)), rows(rows) {}
  Index start(Index block) const { return rows * block / count; }
  const Index count, rows;
};

// A few rows have too few sums to hide a multiply-add's latency, so each sum is split into several
// that take k in turns. Their number depends on the rows of the whole product, not on the tile: how
// rows are cut for threads must not change a bit.
template <int NV>
constexpr int splits(Index rows) {
  return rows * NV >= 8 ? 1 : rows * NV >= 4 ? 2 : 4;
}

// tile[rows][stride] = a[rows, k] panel[k][NV * width], over the first `Used` vectors of each,
// or += if `accumulate`: the product is summed before, since a small term rounds against its own
// sum, not against a larger one.
template <class T, int Rows, int NV, int Used, int Split = 1>
void micro_kernel(const T* a, Index row_stride, Index k_stride, const T* panel, Index k, T* tile,
                  bool accumulate, Index stride = NV * width<T>) {
  using V = Vec<T>;
  constexpr int w = V::width;
  V sum[Split][Rows][Used];
#pragma GCC unroll 4
  for (int s = 0; s < Split; ++s)
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Used; ++v) sum[s][r][v] = V(T(0));
  const auto multiply_add = [&](V(&into)[Rows][Used]) __attribute__((always_inline)) {
    V b[Used];
#pragma GCC unroll 4
    for (int v = 0; v < Used; ++v) b[v] = V::load(panel + v * w);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const V x(a[r * row_stride]);
#pragma GCC unroll 4
      for (int v = 0; v < Used; ++v) into[r][v] = into[r][v] + x * b[v];
    }
    a += k_stride, panel += NV * w;
  };
  for (; k >= Split; k -= Split)
#pragma GCC unroll 4
    for (int s = 0; s < Split; ++s) multiply_add(sum[s]);
  for (; k > 0; --k) multiply_add(sum[0]);
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Used; ++v) {
#pragma GCC unroll 4
      for (int s = 1; s < Split; ++s) sum[0][r][v] = sum[0][r][v] + sum[s][r][v];
      if (accumulate) sum[0][r][v] = V::load(tile + r * stride + v * w) + sum[0][r][v];
      sum[0][r][v].store(tile + r * stride + v * w);
    }
}

// The kernel of this many rows, which are `among` in the whole product.
template <class T, int NV, int Used, int Rows = tile_rows<NV>>
FASTRNN_INLINE void with_rows(Index rows, Index among, const T* a, Index row_stride, Index k_stride,
                              const T* panel, Index k, T* tile, bool accumulate, Index stride) {
  if (rows == Rows) {
    const auto kernel = [&](auto split) __attribute__((always_inline)) {
      micro_kernel<T, Rows, NV, Used, split()>(a, row_stride, k_stride, panel, k, tile, accumulate,
                                               stride);
    };
    const int split = splits<NV>(among);
    if constexpr (splits<NV>(Rows) == 4)
      if (split == 4) return kernel(std::integral_constant<int, 4>());
    if constexpr (splits<NV>(Rows) >= 2)
      if (split == 2) return kernel(std::integral_constant<int, 2>());
    return kernel(std::integral_constant<int, 1>());
  }
  if constexpr (Rows > 1)
    with_rows<T, NV, Used, Rows - 1>(rows, among, a, row_stride, k_stride, panel, k, tile,
                                     accumulate, stride);
}

// A panel that needs only half of its vectors (the last one, as a rule) does half the work.
template <int NV>
constexpr int half_panel = NV % 2 == 0 ? NV / 2 : NV;

template <int NV>
constexpr int vectors_used(Index needed) {
  return needed <= half_panel<NV> ? half_panel<NV> : NV;
}

template <class T, int NV>
FASTRNN_INLINE void tile_product(int used, Index rows, const T* a, Index row_stride, Index k_stride,
                                 const T* panel, Index k, T* tile, bool accumulate = true,
                                 Index stride = NV * width<T>, Index among = 0) {
  if (among == 0) among = rows;
  if (used == NV)
    with_rows<T, NV, NV>(rows, among, a, row_stride, k_stride, panel, k, tile, accumulate, stride);
  else
    with_rows<T, NV, half_panel<NV>>(rows, among, a, row_stride, k_stride, panel, k, tile,
                                     accumulate, stride);
}

// The tiles of a product, panel by panel, dealt to the threads by the work in them. Half of the
// last panel's tiles, which cost less, come first: so two threads get the same.
template <int NV>
class Tiles {
 public:
  Tiles(Index rows, Index vectors)
      : blocks_(rows),
        panels_(ceil_div(vectors, NV)),
        last_used_(vectors_used<NV>(vectors - (panels_ - 1) * NV)),
        early_(blocks_.count / 2),
        full_(blocks_.count * (panels_ - 1)) {}

  // The first tile at or after a share of the work.
  Index share(Index rank, Index size) const {
    const Index early = early_ * last_used_, full = full_ * NV;
    const Index work = (full + blocks_.count * last_used_) * rank / size;
    if (work <= early) return ceil_div(work, last_used_);
    if (work <= early + full) return early_ + ceil_div(work - early, NV);
    return early_ + full_ + ceil_div(work - early - full, last_used_);
  }

  struct Tile {
    Index panel, row0, rows;
    int used;  // vectors
  };
  Tile operator[](Index i) const {
    const bool full = i >= early_ && i < early_ + full_;
    const Index panel = full ? (i - early_) / blocks_.count : panels_ - 1;
    const Index block = i < early_ ? i : (i - early_) % blocks_.count + (full ? 0 : early_);
    const Index row0 = blocks_.start(block);
    return {panel, row0, blocks_.start(block + 1) - row0, full ? NV : last_used_};
  }

 private:
  const RowBlocks<NV> blocks_;
  const Index panels_;
  const int last_used_;
  const Index early_, full_;
};

// This thread's share of C = A B, A row-major with stride `lda`, B packed and `vectors` wide; each
// tile goes to finish(tile, row0, rows, panel). A long sum is made of slices. `among`: the rows
// that these are a part of, if of more.
constexpr Index sum_slice = 1024;

template <class T, int NV, class Finish>
FASTRNN_INLINE void product(const Team& team, Index rows, Index vectors, Index k, const T* a,
                            Index lda, const T* packed, const Finish& finish, Index among = 0) {
  if (rows <= 0 || vectors == 0) return;
  among = larger(among, rows);
  constexpr Index panel_row = NV * width<T>;
  alignas(64) T tile[tile_rows<NV> * panel_row];
  const Tiles<NV> tiles(rows, vectors);
  const Index slices = larger(1, ceil_div(k, sum_slice));
  const Index end = tiles.share(team.rank + 1, team.size);
  for (Index item = tiles.share(team.rank, team.size); item < end; ++item) {
    const auto [panel, row0, rows_here, used] = tiles[item];
    for (Index i = 0; i < slices; ++i) {
      const Index begin = k * i / slices, depth = k * (i + 1) / slices - begin;
      tile_product<T, NV>(used, rows_here, a + row0 * lda + begin, lda, 1,
                          packed + (panel * k + begin) * panel_row, depth, tile, i > 0, panel_row,
                          among);
    }
    finish(tile, row0, rows_here, panel);
  }
}

// The finish of a product that only stores: this tile's place in out [.., columns], rows `ld`
// apart.
template <class T, int NV>
void store_tile(const T* tile, Index rows, Index panel, T* out, Index columns, Index ld) {
  constexpr Index w = width<T>;
  for (Index r = 0; r < rows; ++r)
    for (Index v = 0; v < NV; ++v) {
      const Index column = (panel * NV + v) * w;
      if (column < columns)
        Vec<T>::load(tile + (r * NV + v) * w).store(out + r * ld + column, columns - column);
    }
}

// A product's B, packed, and where C = A B goes: C row-major [M, columns].
template <class T>
struct Target {
  const T* packed;
  Index columns;
  T* out;
};

// out[n] = the sums of the columns of a [rows, n], rows `stride` apart, or += if `accumulate`; in
// two levels, since one long sum would round each small term against the whole.
template <class T>
void add_column_sums(const T* a, Index stride, Index rows, Index n, const T* weights,
                     bool accumulate, T* out) {
  constexpr Index w = width<T>, level = 32;
  for (Index column = 0; column < n; column += w) {
    Vec<T> sum = Vec<T>::load(out + column, accumulate ? n - column : 0);
    for (Index row = 0; row < rows; row += level) {
      Vec<T> part(T(0));
      for (Index i = row; i < smaller(row + level, rows); ++i) {
        const Vec<T> x = Vec<T>::load(a + i * stride + column);
        part = part + (weights ? Vec<T>(weights[i]) * x : x);
      }
      sum = sum + part;
    }
    sum.store(out + column, n - column);
  }
}

// This thread's rows of C = A^T B, or C += A^T B, for several B: `a` is [k, lda] and C's row m is
// a's column m. `sums` [m], if not null, gets the sums of a's columns, whose row i counts
// weights[i] times (null: once). `scratch` holds `transposed_scratch` values, the thread's own.
constexpr Index k_block = 768;
template <class T, int NV>
constexpr Index scratch_stride = ceil_div(tile_rows<NV>, width<T>) * width<T>;
template <class T, int NV>
constexpr Index transposed_scratch = k_block * scratch_stride<T, NV>;

template <class T, int NV>
void transposed_product(const Team& team, const T* a, Index lda, Index m, Index k,
                        const Target<T>* targets, int count, T* scratch, bool accumulate = false,
                        T* sums = nullptr, const T* weights = nullptr) {
  constexpr Index w = width<T>, panel_width = NV * w, stride = scratch_stride<T, NV>;
  alignas(64) T tile[tile_rows<NV> * panel_width];
  const Index first = team.begin(m);
  const RowBlocks<NV> blocks(team.end(m) - first);
  const Index slices = ceil_div(k, k_block);
  // A slice of B stays in the cache for all blocks.
  for (Index slice = 0; slice < slices; ++slice) {
    const Index k0 = k * slice / slices, depth = k * (slice + 1) / slices - k0;
    const bool add = accumulate || slice > 0;
    for (Index block = 0; block < blocks.count; ++block) {
      const Index row0 = first + blocks.start(block);
      const Index rows = first + blocks.start(block + 1) - row0;
      for (Index i = 0; i < depth; ++i)
        for (Index r = 0; r < rows; r += w)
          Vec<T>::load(a + (k0 + i) * lda + row0 + r, rows - r).store(scratch + i * stride + r);
      if (sums)
        add_column_sums(scratch, stride, depth, rows, weights ? weights + k0 : nullptr, add,
                        sums + row0);
      for (const Target<T>* target = targets; target < targets + count; ++target) {
        const Index panels = ceil_div(target->columns, panel_width);
        for (Index panel = 0; panel < panels; ++panel) {
          const T* b = target->packed + (panel * k + k0) * panel_width;
          T* out = target->out + row0 * target->columns + panel * panel_width;
          const Index left = target->columns - panel * panel_width;
          tile_product<T, NV>(vectors_used<NV>(ceil_div(left, w)), rows, scratch, 1, stride, b,
                              depth, tile, false, panel_width, m);
          for (Index r = 0; r < rows; ++r)
            for (Index v = 0; v < NV && v * w < left; ++v) {
              T* const here = out + r * target->columns + v * w;
              Vec<T> sum = Vec<T>::load(tile + (r * NV + v) * w);
              if (add) sum = Vec<T>::load(here, left - v * w) + sum;
              sum.store(here, left - v * w);
            }
        }
      }
    }
  }
}

}  // namespace fastrnn::FASTRNN_ISA
