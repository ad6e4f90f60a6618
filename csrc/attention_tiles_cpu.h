// What both passes of attention share: a head's operands packed, the masks, dropout.
//
// A tile is a few queries by one panel of keys; a block is the rows of several tiles by `key_block`
// keys. Blocks are of one size whatever the number of threads: same sums, same bits.
#pragma once

#include "gemm_cpu.h"
#include "kernels_cpu.h"
#include "philox.h"
#include "workspace.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
class AttentionTiles {
 protected:
  using V = Vec<T>;
  using C = Constants<T>;
  using Bits = typename C::Bits;
  static constexpr int NV = 2;
  static constexpr Index w = V::width, panel_width = NV * w, most_rows = tile_rows<NV>;
  static constexpr Index key_block = 128, block_panels = key_block / panel_width;
  static constexpr T infinity = T(__builtin_inf());

  AttentionTiles(const Attention& arguments) : a_(arguments) {}

  static constexpr Index panels(Index columns) { return ceil_div(columns, panel_width); }
  static constexpr Index padded(Index columns) { return panels(columns) * panel_width; }
  static constexpr int used(Index columns) { return int(smaller(NV, ceil_div(columns, w))); }

  // Of the open head.
  T* at(const Heads& tensor, Index row = 0) const {
    return static_cast<T*>(tensor.data) + offset(tensor) + row * tensor.row;
  }

  void open(Index head) {
    batch_ = head / a_.heads, head_ = head % a_.heads;
    const Index next = head + 1 < a_.batch * a_.heads ? head + 1 : head;
    next_batch_ = next / a_.heads, next_head_ = next % a_.heads;
    const Index bytes = a_.mask_kind == Mask::boolean ? 1 : sizeof(T);
    mask_ = static_cast<const char*>(a_.mask.data) + offset(a_.mask) * bytes;
  }

  // Of the head that comes next.
  const T* next(const Heads& tensor, Index row) const {
    return static_cast<const T*>(tensor.data) + next_batch_ * tensor.batch +
           next_head_ * tensor.head + row * tensor.row;
  }

  template <int Write = 0>
  static FASTRNN_INLINE void prefetch(const T* row, Index width) {
    for (Index c = 0; c < width; c += 64 / sizeof(T)) __builtin_prefetch(row + c, Write, 3);
  }

  // [n, k] to out [panels(n)][k][panel_width]: row i becomes column i.
  static void pack_columns(const T* source, Index ld, Index n, Index k, T* out) {
    for (Index v = 0; v < ceil_div(n, w); ++v)
      pack_columns_transposed(source + v * w * ld, ld, n - v * w, k,
                              out + (v / NV) * k * panel_width + v % NV * w, panel_width);
  }

  // [n, k] times `factor` to out [panels(k)][n][panel_width].
  static void pack_panels(const T* source, Index ld, Index n, Index k, T factor, T* out) {
    for (Index v = 0; v < ceil_div(k, w); ++v)
      for (Index i = 0; i < n; ++i)
        (V::load(source + i * ld + v * w, k - v * w) * V(factor))
            .store(out + (v / NV * n + i) * panel_width + v % NV * w);
  }

  // [n, k] times `factor` to out [n, k].
  static void pack_rows(const T* source, Index ld, Index n, Index k, T factor, T* out) {
    for (Index i = 0; i < n; ++i)
      for (Index c = 0; c < k; c += w)
        (V::load(source + i * ld + c, k - c) * V(factor)).store(out + i * k + c, k - c);
  }

  // [panels(k)][stride][panel_width], the first n rows of each, times `factor` to rows of k.
  static void unpack(const T* panel, Index stride, Index n, Index k, T factor, T* out, Index ld) {
    for (Index v = 0; v < ceil_div(k, w); ++v)
      for (Index i = 0; i < n; ++i)
        (V::load(panel + (v / NV * stride + i) * panel_width + v % NV * w) * V(factor))
            .store(out + i * ld + v * w, k - v * w);
  }

  // The first n rows of [panels(width)][stride][panel_width].
  static void zero(T* panel, Index stride, Index n, Index width) {
    for (Index p = 0; p < panels(width); ++p)
      for (Index i = 0; i < n * panel_width; i += w)
        V(T(0)).store(panel + p * stride * panel_width + i);
  }

  // The panels of a block of keys that some of these queries attend to, from the first such to the
  // last, and the end of their keys.
  struct Needed {
    Index begin, end, keys;
    bool none() const { return begin >= end; }
  };
  Needed needed(Index query, Index rows, Index key) const {
    Index keys = smaller(key_block, a_.keys - key);
    if (a_.causal) keys = smaller(keys, query + rows - key);
    if (keys <= 0) return {0, 0, 0};
    Index begin = 0, end = panels(keys);
    if (a_.mask_kind != Mask::none) {
      while (begin < end && masked_out(query, rows, key + begin * panel_width)) ++begin;
      while (begin < end && masked_out(query, rows, key + (end - 1) * panel_width)) --end;
    }
    return {begin, end, smaller(keys, end * panel_width)};
  }

  // tile[rows][stride], a panel's products of scaled queries and keys, to scores: -inf where a
  // query does not attend, and beyond the last key.
  void mask_scores(Index query, Index rows, Index key, int vectors, T* tile, Index stride) const {
    const Index last = a_.keys - key, lanes = vectors * w, column = a_.mask_column;
    if (const Mask kind = a_.mask_kind; kind != Mask::none)
      for (Index r = 0; r < rows; ++r) {
        const char* mask = mask_at(query + r, key);
        T* const row = tile + r * stride;
        for (Index v = 0; v < lanes; v += w)
          masked(V::load(row + v), kind, mask, column, v, last).store(row + v);
      }
    if (last >= lanes && !(a_.causal && key + lanes > query + 1)) return;
    Bits lane;
    for (int i = 0; i < int(w); ++i) lane[i] = i;
    for (Index r = 0; r < rows; ++r) {
      const Index allowed = a_.causal ? smaller(last, query + r + 1 - key) : last;
      T* const row = tile + r * stride;
      for (Index v = smaller(allowed < 0 ? 0 : allowed, lanes) / w * w; v < lanes; v += w) {
        const Bits attends = lane < typename C::Whole(allowed - v);
        V(attends ? V::load(row + v).v : V(-infinity).v).store(row + v);
      }
    }
  }

  // 0 where dropout takes a weight of the query away, else 1 / (1 - dropout), for `count` keys from
  // a multiple of 4 on; out has room for a multiple of 64.
  void kept(Index query, Index key, Index count, T* out) const {
    constexpr int quads = 16;  // at a time, vectors of them
    alignas(64) std::uint32_t words[4 * quads];
    const T keep = T(1 / (1 - a_.dropout));
    for (Index first = 0; first < count; first += 4 * quads) {
      philox<quads>(std::uint64_t(*a_.seed), std::uint32_t((key + first) / 4),
                    std::uint32_t(batch_ * a_.heads + head_), std::uint32_t(query), 0, words);
      for (Index i = 0; i < 4 * quads; ++i)
        out[first + i] = words[i] < a_.dropped_below ? T(0) : keep;
    }
  }

  // x *= y, whole vectors.
  static void multiply(T* x, const T* y, Index count) {
    for (Index i = 0; i < count; i += w) (V::load(x + i) * V::load(y + i)).store(x + i);
  }

  const Attention& a_;

 private:
  // Lanes of x, from `place` on in a mask's row of `left` keys, whose key the query attends to,
  // -inf in the others; or x with the mask added.
  static FASTRNN_INLINE V masked(V x, Mask kind, const char* mask, Index column, Index place,
                                 Index left) {
    if (kind == Mask::boolean) {
      if (column == 0) return *mask ? x : V(-infinity);
      return V::bytes(mask + place, left - place) != 0 ? x.v : V(-infinity).v;
    }
    const T* const values = reinterpret_cast<const T*>(mask);
    return x + (column == 0 ? V(*values) : V::load(values + place, left - place));
  }

  // Whether the mask leaves none of a panel's keys to any of these queries.
  bool masked_out(Index query, Index rows, Index key) const {
    if (a_.mask.row == 0) rows = 1;
    const Index lanes = a_.mask_column == 0 ? 1 : smaller(panel_width, a_.keys - key);
    for (Index r = 0; r < rows; ++r) {
      const char* mask = mask_at(query + r, key);
      for (Index v = 0; v < lanes; v += w) {
        const V x = masked(V(T(0)), a_.mask_kind, mask, a_.mask_column, v, a_.keys - key);
        for (int i = 0; i < smaller(w, lanes - v); ++i)
          if (!(x.v[i] == -infinity)) return false;
      }
    }
    return true;
  }

  const char* mask_at(Index query, Index key) const {
    const Index bytes = a_.mask_kind == Mask::boolean ? 1 : sizeof(T);
    return mask_ + (query * a_.mask.row + key * a_.mask_column) * bytes;
  }

  Index offset(const Heads& tensor) const { return batch_ * tensor.batch + head_ * tensor.head; }

  Index batch_ = 0, head_ = 0, next_batch_, next_head_;  // the open head
  const char* mask_ = nullptr;                           // its mask
};

}  // namespace fastrnn::FASTRNN_ISA
