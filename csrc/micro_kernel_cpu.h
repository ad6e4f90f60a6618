// What multiplies one tile: rows x NV accumulators that stay in registers while the kernel streams
// a panel. Tiles are as their numbers are computed: float where Bf16 is stored.
#pragma once

#include "packing_cpu.h"

namespace fastrnn::FASTRNN_ISA {

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
  // From one row, the addresses of twelve take more registers than there are: spilled ones cost 6%.
  constexpr int low = Rows > 8 ? (Rows + 1) / 2 : Rows;
  const T* high = a + low * row_stride;
  const auto multiply_add = [&](V(&into)[Rows][Used], Index left) __attribute__((always_inline)) {
    ahead.next();
    V b[Used];
#pragma GCC unroll 4
    for (int v = 0; v < Used; ++v) b[v] = F::column(panel + v * w * depth<T>);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const V x = F::row(r < low ? a + r * row_stride : high + (r - low) * row_stride, left);
#pragma GCC unroll 4
      for (int v = 0; v < Used; ++v) into[r][v] = F::multiply_add(into[r][v], x, b[v]);
    }
    a += k_stride, high += k_stride, panel += NV * w * depth<T>;
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

}  // namespace fastrnn::FASTRNN_ISA
