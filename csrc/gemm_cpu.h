// Products on packed panels: C[M, N] = A[M, K] B[K, N] with B cut into panels of NV vectors of
// columns, [panels][K][NV * width], so that the inner loop streams one panel while a tile of
// rows x NV accumulators stays in registers.
//
// A sum takes k in the same order whatever the tile or the number of threads: same bits.
//
// Numbers that are computed in more than they are stored in (Bf16) come out as they are computed:
// tiles are float.
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

// What a micro-kernel has fetched into the second cache with every group of k: nothing,
struct Nothing {
  static constexpr bool full = false;
  FASTRNN_INLINE void next() const {}
};
// or the next `step` bytes from `place` on.
struct Fetch {
  static constexpr bool full = true;  // tiles alone, half of the rows or more, and all vectors
  const char* place;
  Index step;
  FASTRNN_INLINE void next() {
    __builtin_prefetch(place, 0, 2);
    place += step;
  }
  // Part `i` of `many` of the memory at `place`, `groups` of so many bytes; the first few take it.
  static Fetch part(const void* place, Index groups, Index bytes, Index i, Index many) {
    constexpr Index most = 4;
    many = smaller(many, most);
    if (i >= many) return {static_cast<const char*>(place), 0};
    return {static_cast<const char*>(place) + groups * bytes * i / many, bytes / many};
  }
};

// What a micro-kernel multiplies: a group of neighbours along k of each lane's column (`column`),
// or of one row in every lane (`row`).
template <class T>
struct Factor {
  static FASTRNN_INLINE Vec<T> column(const T* p) { return Vec<T>::load(p); }
  static FASTRNN_INLINE Vec<T> row(const T* p, Index) { return Vec<T>(*p); }
  static FASTRNN_INLINE Vec<T> multiply_add(Vec<T> sum, Vec<T> x, Vec<T> y) { return sum + x * y; }
};

#ifdef __AVX512BF16__
template <>
struct Factor<Bf16> {
  using V = Vec<float>;
  static FASTRNN_INLINE V column(const Bf16* p) {
    Words pairs;
    __builtin_memcpy(&pairs, p, sizeof pairs);
    return Floats(pairs);
  }
  // k: what is left of the row. A missing neighbour is 0, as the panel's.
  static FASTRNN_INLINE V row(const Bf16* p, Index k) {
    std::uint32_t pair = p->bits;
    if (k > 1) __builtin_memcpy(&pair, p, sizeof pair);
    return Floats(Words{} + pair);
  }
  static FASTRNN_INLINE V multiply_add(V sum, V x, V y) {
    return Floats(_mm512_dpbf16_ps(__m512(sum.v), __m512bh(x.v), __m512bh(y.v)));
  }
};
#endif

// tile[rows][stride] = a[rows, k] panel[k][NV * width], both operands, over the first `Used`
// vectors of each, or += if `accumulate`: the product is summed before, since a small term rounds
// against its own sum, not against a larger one. `k_stride`: between groups of a row.
template <class T, int Rows, int NV, int Used, int Split = 1, class Ahead = Nothing>
void micro_kernel(const T* a, Index row_stride, Index k_stride, const T* panel, Index k,
                  Value<T>* tile, bool accumulate, Index stride = NV * width<T>, Ahead ahead = {}) {
  using V = Vec<Value<T>>;
  using F = Factor<T>;
  constexpr int w = V::width;
  V sum[Split][Rows][Used];
#pragma GCC unroll 4
  for (int s = 0; s < Split; ++s)
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Used; ++v) sum[s][r][v] = V(Value<T>(0));
  const auto multiply_add = [&](V(&into)[Rows][Used], Index left) __attribute__((always_inline)) {
    ahead.next();
    V b[Used];
#pragma GCC unroll 4
    for (int v = 0; v < Used; ++v) b[v] = F::column(panel + v * w * depth<T>);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const V x = F::row(a + r * row_stride, left);
#pragma GCC unroll 4
      for (int v = 0; v < Used; ++v) into[r][v] = F::multiply_add(into[r][v], x, b[v]);
    }
    a += k_stride, panel += NV * w * depth<T>;
  };
  constexpr Index all = depth<T>;
  for (; k >= Split * all; k -= Split * all)
#pragma GCC unroll 4
    for (int s = 0; s < Split; ++s) multiply_add(sum[s], all);
  for (; k >= all; k -= all) multiply_add(sum[0], all);
  if (all > 1 && k > 0) multiply_add(sum[0], 1);
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
template <class T, int NV, int Used, int Rows = tile_rows<NV>, class Ahead = Nothing>
FASTRNN_INLINE void with_rows(Index rows, Index among, const T* a, Index row_stride, Index k_stride,
                              const T* panel, Index k, Value<T>* tile, bool accumulate,
                              Index stride, Ahead ahead = {}) {
  if (rows == Rows) {
    const auto kernel = [&](auto split) __attribute__((always_inline)) {
      micro_kernel<T, Rows, NV, Used, split()>(a, row_stride, k_stride, panel, k, tile, accumulate,
                                               stride, ahead);
    };
    const int split = splits<NV>(among);
    if constexpr (!Ahead::full && splits<NV>(Rows) == 4)
      if (split == 4) return kernel(std::integral_constant<int, 4>());
    if constexpr (!Ahead::full && splits<NV>(Rows) >= 2)
      if (split == 2) return kernel(std::integral_constant<int, 2>());
    return kernel(std::integral_constant<int, 1>());
  }
  if constexpr (Rows > (Ahead::full ? tile_rows<NV> / 2 : 1))
    with_rows<T, NV, Used, Rows - 1>(rows, among, a, row_stride, k_stride, panel, k, tile,
                                     accumulate, stride, ahead);
}

// A panel that needs only half of its vectors (the last one, as a rule) does half the work.
template <int NV>
constexpr int half_panel = NV % 2 == 0 ? NV / 2 : NV;

template <int NV>
constexpr int vectors_used(Index needed) {
  return needed <= half_panel<NV> ? half_panel<NV> : NV;
}

template <class T, int NV, class Ahead = Nothing>
FASTRNN_INLINE void tile_product(int used, Index rows, const T* a, Index row_stride, Index k_stride,
                                 const T* panel, Index k, Value<T>* tile, bool accumulate = true,
                                 Index stride = NV * width<T>, Index among = 0, Ahead ahead = {}) {
  if (among == 0) among = rows;
  if (Ahead::full || used == NV)
    with_rows<T, NV, NV>(rows, among, a, row_stride, k_stride, panel, k, tile, accumulate, stride,
                         ahead);
  else if constexpr (!Ahead::full)
    with_rows<T, NV, half_panel<NV>>(rows, among, a, row_stride, k_stride, panel, k, tile,
                                     accumulate, stride, ahead);
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
    Index block;
  };
  Index blocks() const { return blocks_.count; }
  Tile operator[](Index i) const {
    const bool full = i >= early_ && i < early_ + full_;
    const Index panel = full ? (i - early_) / blocks_.count : panels_ - 1;
    const Index block = i < early_ ? i : (i - early_) % blocks_.count + (full ? 0 : early_);
    const Index row0 = blocks_.start(block);
    const Index rows = blocks_.start(block + 1) - row0;
    return {panel, row0, rows, full ? NV : last_used_, block};
  }

 private:
  const RowBlocks<NV> blocks_;
  const Index panels_;
  const int last_used_;
  const Index early_, full_;
};

// A long sum is made of slices; those of weights' gradients, over all rows, are shorter: few units
// and many rows had up to 12 times torch's error.
constexpr Index sum_slice = 1024, gradient_slice = 192;

// tile[rows][NV * width] = a[rows, k] panel, over the first `used` vectors; a's rows are `lda`
// apart and `among` others. If several blocks of rows take this panel, from a far cache, block
// `block` of them fetches its share of the next one.
template <class T, int NV>
FASTRNN_INLINE void panel_product(int used, Index rows, const T* a, Index lda,
                                  const Operand<T>* panel, Index k, Value<T>* tile, Index among = 0,
                                  Index block = 0, Index blocks = 1) {
  constexpr Index w = width<T>;
  constexpr int part = part_vectors<NV>;
  const Index slices = larger(1, ceil_div(k, sum_slice)), groups = ceil_div(k, depth<T>);
  for (Index i = 0; i < slices; ++i) {
    const Index begin = groups * i / slices * depth<T>;
    const Index end = smaller(k, groups * (i + 1) / slices * depth<T>);
    const auto multiply = [&](const Operand<T>* x, Index ld) __attribute__((always_inline)) {
      for (int v = 0; v < used; v += part) {
        const Operand<T>* const here = panel + (v * padded<T>(k) + part * begin) * w;
        const auto with = [&](auto ahead) __attribute__((always_inline)) {
          tile_product<Operand<T>, part>(used < part ? used : part, rows, x, ld, depth<T>, here,
                                         end - begin, tile + v * w, i > 0, NV * w, among, ahead);
        };
        if (blocks > 1 && used == NV)
          with(Fetch::part(here + NV * w * padded<T>(k), (end - begin) / depth<T>,
                           part * w * Index(sizeof(Group<T>)), block, blocks));
        else
          with(Nothing());
      }
    };
    if constexpr (widens<T>) {
      constexpr Index stride = sum_slice + w;  // rows not all in the same sets of the cache
      alignas(64) Operand<T> wide[tile_rows<NV> * stride];
      for (Index r = 0; r < rows; ++r)
        widen_row(a + r * lda + begin, end - begin, wide + r * stride);
      multiply(wide, stride);
    } else {
      multiply(a + begin, lda);
    }
  }
}

// This thread's share of C = A B, A row-major with stride `lda`, B packed and `vectors` wide; each
// tile goes to finish(tile, row0, rows, panel). `among`: the rows that these are a part of, if of
// more.
template <class T, int NV, class Finish>
FASTRNN_INLINE void product(const Team& team, Index rows, Index vectors, Index k, const T* a,
                            Index lda, const Operand<T>* packed, const Finish& finish,
                            Index among = 0) {
  if (rows <= 0 || vectors == 0) return;
  among = larger(among, rows);
  constexpr Index panel_row = NV * width<T>;
  alignas(64) Value<T> tile[tile_rows<NV> * panel_row];
  const Tiles<NV> tiles(rows, vectors);
  const Index last = tiles.share(team.rank + 1, team.size);
  const Index bytes = vectors * width<T> * padded<T>(k) * Index(sizeof(Operand<T>));
  const Index blocks = bytes > near_bytes() * team.size ? tiles.blocks() : 1;
  for (Index item = tiles.share(team.rank, team.size); item < last; ++item) {
    const auto [panel, row0, rows_here, used, block] = tiles[item];
    panel_product<T, NV>(used, rows_here, a + row0 * lda, lda,
                         packed + panel * padded<T>(k) * panel_row, k, tile, among, block, blocks);
    finish(tile, row0, rows_here, panel);
  }
}

// The finish of a product that only stores: this tile's place in out [.., columns], rows `ld`
// apart.
template <class T, int NV>
void store_tile(const Value<T>* tile, Index rows, Index panel, T* out, Index columns, Index ld) {
  constexpr Index w = width<T>;
  for (Index r = 0; r < rows; ++r)
    for (Index v = 0; v < NV; ++v) {
      const Index column = (panel * NV + v) * w;
      if (column < columns)
        Vec<Value<T>>::load(tile + (r * NV + v) * w).store(out + r * ld + column, columns - column);
    }
}

// This thread's rows of out [rows, n] = a [rows, k] B, B packed; as many at a time as stay in the
// cache for all of B's panels.
template <class T, int NV>
void product_by_rows(const Team& team, Index rows, Index n, Index k, const T* a,
                     const Operand<T>* packed, T* out) {
  constexpr Index at_once = 256;
  const Index end = team.end(rows);
  for (Index row = team.begin(rows), count; row < end; row += count) {
    count = smaller(end - row, at_once);
    T* const here = out + row * n;
    product<T, NV>(
        team.alone(), count, ceil_div(n, width<T>), k, a + row * k, k, packed,
        [&](const Value<T>* tile, Index row0, Index rows_here, Index panel) {
          store_tile<T, NV>(tile, rows_here, panel, here + row0 * n, n, n);
        },
        rows);
  }
}

}  // namespace fastrnn::FASTRNN_ISA
