// Products on packed panels: C[M, N] = A[M, K] B[K, N] with B cut into panels of NV vectors of
// columns, [panels][K][NV * width].
//
// A sum takes k in the same order whatever the tile or the number of threads: same bits.
#pragma once

#include "micro_kernel_cpu.h"

namespace fastrnn::FASTRNN_ISA {

// The rows of a product cut into blocks of nearly equal size, at most `tile_rows` each.
template <int NV>
struct RowBlocks {
  explicit RowBlocks(Index rows) : count(ceil_div(rows, tile_rows<NV>)), rows(rows) {}
  Index start(Index block) const { return rows * block / count; }
  const Index count, rows;
};

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

// A long sum is made of slices: one chain of 1024 terms had up to 4 times torch's error, those of
// weights' gradients, over all rows, up to 12 times.
constexpr Index sum_slice = 256, gradient_slice = 192;

// The slices of a sum over k.
template <class T>
struct Slices {
  explicit Slices(Index k) : k(k), count(larger(1, ceil_div(k, sum_slice))) {}
  Index begin(Index i) const { return smaller(k, ceil_div(k, depth<T>) * i / count * depth<T>); }
  const Index k, count;
};

// What of the panels a slice's product fetches from a far cache: the part `block` of `blocks` of as
// much as a slice, `k` rows into the panel `panels` further on.
struct Next {
  Index panels = 0, k = 0, block = 0, blocks = 1;
};

// Slice i of tile[rows][NV * width] = a[rows, k] panel over the first `used` vectors; a's rows are
// `lda` apart and `among` others.
template <class T, int NV>
FASTRNN_INLINE void slice_product(const Slices<T>& slices, Index i, int used, Index rows,
                                  const T* a, Index lda, const Operand<T>* panel, Value<T>* tile,
                                  Index among = 0, const Next& next = {}) {
  constexpr Index w = width<T>;
  constexpr int part = part_vectors<NV>;
  const Index begin = slices.begin(i), end = slices.begin(i + 1), K = padded<T>(slices.k);
  const auto multiply = [&](const Operand<T>* x, Index ld) __attribute__((always_inline)) {
    for (int v = 0; v < used; v += part) {
      const Operand<T>* const here = panel + (v * K + part * begin) * w;
      const auto with = [&](auto ahead) __attribute__((always_inline)) {
        tile_product<Operand<T>, part>(used < part ? used : part, rows, x, ld, depth<T>, here,
                                       end - begin, tile + v * w, i > 0, NV * w, among, ahead);
      };
      if (next.blocks > 1 && used == NV) {
        with(Fetch::part(panel + ((v + next.panels * NV) * K + part * next.k) * w,
                         (end - begin) / depth<T>, part * w * Index(sizeof(Group<T>)), next.block,
                         next.blocks));
      } else {
        with(Nothing());
      }
    }
  };
  if constexpr (widens<T>) {
    constexpr Index stride = sum_slice + w;  // rows not all in the same sets of the cache
    alignas(64) Operand<T> wide[tile_rows<NV> * stride];
    for (Index r = 0; r < rows; ++r) widen_row(a + r * lda + begin, end - begin, wide + r * stride);
    multiply(wide, stride);
  } else {
    multiply(a + begin, lda);
  }
}

// The panels of a B, `size` numbers each. If nobody packed them beforehand, a thread packs each as
// it comes to it, which is in time for a product taken once: so what is packed never leaves the
// near cache.
template <class T, class Pack>
class Panels {
 public:
  Panels(const Operand<T>* packed, Index size, Operand<T>* here, const Pack& pack)
      : packed_(packed), size_(size), here_(here), pack_(pack) {}

  bool packed() const { return packed_; }
  const Operand<T>* operator[](Index panel) const {
    if (packed_) return packed_ + panel * size_;
    if (held_ != panel) pack_(held_ = panel, here_);
    return here_;
  }

 private:
  const Operand<T>* const packed_;
  const Index size_;
  Operand<T>* const here_;  // this thread's
  const Pack& pack_;        // (panel, where to)
  mutable Index held_ = -1;
};

// This thread's share of C = A B, A row-major with stride `lda`, B in panels and `vectors` wide;
// each tile goes to finish(tile, row0, rows, panel). `among`: the rows that these are a part of, if
// of more.
template <class T, int NV, class Pack, class Finish>
FASTRNN_INLINE void panel_product(const Team& team, Index rows, Index vectors, Index k, const T* a,
                                  Index lda, const Panels<T, Pack>& panels, const Finish& finish,
                                  Index among = 0) {
  if (rows <= 0 || vectors == 0) return;
  among = larger(among, rows);
  constexpr Index panel_row = NV * width<T>;
  // Tiles that take a long panel's slices in turn: each of them alone would have the whole panel,
  // 0.6 MB at k = 4500, come from the far cache again, which took a third longer.
  constexpr Index most_abreast = 4, long_sum = 1024;
  alignas(64) Value<T> tile[most_abreast][tile_rows<NV> * panel_row];
  const Slices<T> slices(k);
  const bool in_turn = k > long_sum;
  const Tiles<NV> tiles(rows, vectors);
  const Index last = tiles.share(team.rank + 1, team.size);
  const Index bytes = vectors * width<T> * padded<T>(k) * Index(sizeof(Operand<T>));
  const bool far = panels.packed() && bytes > near_bytes() * team.size;
  for (Index item = tiles.share(team.rank, team.size), count; item < last; item += count) {
    typename Tiles<NV>::Tile abreast[most_abreast];
    for (count = 0; count < (in_turn ? most_abreast : 1) && item + count < last; ++count) {
      abreast[count] = tiles[item + count];
      if (abreast[count].panel != abreast[0].panel) break;
    }
    for (Index i = 0; i < slices.count; ++i)
      for (Index t = 0; t < count; ++t) {
        const auto& [panel, row0, rows_here, used, block] = abreast[t];
        Next next;
        if (far && in_turn)
          next = {i + 1 == slices.count, i + 1 < slices.count ? slices.begin(i + 1) : 0, t, count};
        else if (far)
          next = {1, slices.begin(i), block, tiles.blocks()};
        slice_product<T, NV>(slices, i, used, rows_here, a + row0 * lda, lda, panels[panel],
                             tile[t], among, next);
      }
    for (Index t = 0; t < count; ++t)
      finish(tile[t], abreast[t].row0, abreast[t].rows, abreast[t].panel);
  }
}

// The same of a B packed beforehand.
template <class T, int NV, class Finish>
FASTRNN_INLINE void product(const Team& team, Index rows, Index vectors, Index k, const T* a,
                            Index lda, const Operand<T>* packed, const Finish& finish,
                            Index among = 0) {
  const auto never = [](Index, Operand<T>*) {};
  const Panels<T, decltype(never)> panels(packed, panel_size<T, NV>(1, k), nullptr, never);
  panel_product<T, NV>(team, rows, vectors, k, a, lda, panels, finish, among);
}

// The finish of a product that only stores, or adds: this tile's place in out [.., columns], rows
// `ld` apart.
template <class T, int NV>
void store_tile(const Value<T>* tile, Index rows, Index panel, T* out, Index columns, Index ld,
                bool add = false) {
  using V = Vec<Value<T>>;
  constexpr Index w = width<T>;
  for (Index r = 0; r < rows; ++r)
    for (Index v = 0; v < NV; ++v) {
      const Index column = (panel * NV + v) * w, left = columns - column;
      if (left <= 0) break;
      T* const place = out + r * ld + column;
      V sum = V::load(tile + (r * NV + v) * w);
      if (add) sum = V::load(place, left) + sum;
      sum.store(place, left);
    }
}

// This thread's rows of out [rows, n] = a [rows, k] B, B packed and the rows `among` others; as
// many at a time as stay in the cache for all of B's panels.
template <class T, int NV>
void product_by_rows(const Team& team, Index rows, Index among, Index n, Index k, const T* a,
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
        among);
  }
}

}  // namespace fastrnn::FASTRNN_ISA
