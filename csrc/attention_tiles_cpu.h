// What both passes of attention share: a head's operands packed, the masks, dropout.
//
// A tile is a few queries by one panel of keys; a block is the rows of several tiles by `key_block`
// keys. Blocks are of one size whatever the number of threads: same sums, same bits.
#pragma once

#include "gemm_cpu.h"
#include "kernels_cpu.h"
#include "philox_cpu.h"
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

  template <class Value = T>
  Value* at(const Heads& tensor, Index head) const {
    return static_cast<Value*>(tensor.data) + head / a_.heads * tensor.batch +
           head % a_.heads * tensor.head;
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

  // The panels of a block of keys that some of these queries attend to, from the first such to the
  // last, and the end of their keys.
  struct Needed {
    Index begin, end, keys;
    bool none() const { return begin >= end; }
  };
  Needed needed(Index head, Index query, Index rows, Index key) const {
    Index keys = smaller(key_block, a_.keys - key);
    if (a_.causal) keys = smaller(keys, query + rows - key);
    if (keys <= 0) return {0, 0, 0};
    Index begin = 0, end = panels(keys);
    if (a_.mask_kind != Mask::none) {
      while (begin < end && masked_out(head, query, rows, key + begin * panel_width)) ++begin;
      while (begin < end && masked_out(head, query, rows, key + (end - 1) * panel_width)) --end;
    }
    return {begin, end, smaller(keys, end * panel_width)};
  }

  // tile[rows][panel_width], products of scaled queries and keys, to scores: -inf where a query
  // does not attend, and beyond the last key.
  void mask_scores(Index head, Index query, Index rows, Index key, int vectors, T* tile) const {
    if (a_.mask_kind != Mask::none)
      for (Index r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) {
          T* const here = tile + r * panel_width + v * w;
          masked(V::load(here), head, query + r, key + v * w).store(here);
        }
    const Index last = a_.keys - key, lanes = vectors * w;
    if (last >= lanes && !(a_.causal && key + lanes > query + 1)) return;
    Bits lane;
    for (int i = 0; i < int(w); ++i) lane[i] = i;
    for (Index r = 0; r < rows; ++r) {
      const Index allowed = a_.causal ? smaller(last, query + r + 1 - key) : last;
      for (int v = 0; v < vectors; ++v) {
        T* const here = tile + r * panel_width + v * w;
        const Bits attends = lane < typename C::Whole(allowed - v * w);
        V(attends ? V::load(here).v : V(-infinity).v).store(here);
      }
    }
  }

  // 0 where dropout takes a weight of the query away, else 1 / (1 - dropout), for `count` keys from
  // a multiple of 4 on; out has room for a multiple of 4.
  void kept(Index head, Index query, Index key, Index count, T* out) const {
    alignas(64) std::uint32_t words[key_block];
    const Index quads = ceil_div(count, 4);
    random_words(a_.seed, std::uint32_t(head), std::uint32_t(query), std::uint32_t(key / 4), quads,
                 words);
    const T keep = T(1 / (1 - a_.dropout));
    for (Index i = 0; i < quads * 4; ++i) out[i] = words[i] < a_.dropped_below ? T(0) : keep;
  }

  const Attention& a_;

 private:
  // Lanes of x whose key the query attends to, -inf in the others; or x with the mask added.
  FASTRNN_INLINE V masked(V x, Index head, Index query, Index key) const {
    const Index lanes = a_.keys - key;
    if (a_.mask_kind == Mask::boolean) {
      const std::uint8_t* p = mask_at<std::uint8_t>(head, query, key);
      if (a_.mask_column == 0) return *p ? x : V(-infinity);
      return attends(p, lanes) ? x.v : V(-infinity).v;
    }
    const T* p = mask_at<T>(head, query, key);
    return x + (a_.mask_column == 0 ? V(*p) : V::load(p, lanes));
  }

  // Whether the mask leaves none of a panel's keys to any of these queries.
  bool masked_out(Index head, Index query, Index rows, Index key) const {
    if (a_.mask.row == 0) rows = 1;
    const Index lanes = a_.mask_column == 0 ? 1 : smaller(panel_width, a_.keys - key);
    for (Index r = 0; r < rows; ++r)
      for (Index v = 0; v < lanes; v += w) {
        V x = masked(V(T(0)), head, query + r, key + v);
        for (int i = 0; i < smaller(w, lanes - v); ++i)
          if (!(x.v[i] == -infinity)) return false;
      }
    return true;
  }

  template <class Value>
  const Value* mask_at(Index head, Index query, Index key) const {
    return at<const Value>(a_.mask, head) + query * a_.mask.row + key * a_.mask_column;
  }

  // All bits of the lanes whose byte at p is not 0; lanes from n on attend to nothing.
  static FASTRNN_INLINE Bits attends(const std::uint8_t* p, Index n) {
    typename C::Bytes bytes{};
    if (n >= w)
      __builtin_memcpy(&bytes, p, w);
    else
      for (Index i = 0; i < n; ++i) bytes[i] = p[i];
    return __builtin_convertvector(bytes, Bits) != 0;
  }
};

}  // namespace fastrnn::FASTRNN_ISA
