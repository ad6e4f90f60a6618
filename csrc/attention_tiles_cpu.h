// What both passes of attention share: a head's operands packed, the masks, dropout.
//
// A tile is a few queries by one panel of keys; a block is the rows of several tiles by `key_block`
// keys. Blocks are of one size whatever the number of threads: same sums, same bits.
#pragma once

#include "ahead_cpu.h"
#include "few_products_cpu.h"
#include "gemm_cpu.h"
#include "kernels_cpu.h"
#include "philox_cpu.h"
#include "softmax_cpu.h"
#include "workspace.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
class AttentionTiles {
 protected:
  using V = Vec<T>;
  static constexpr int NV = 2;
  static constexpr Index w = V::width, panel_width = NV * w, most_rows = tile_rows<NV>;
  static constexpr Index key_block = 128, words = key_block / w;
  static constexpr T infinity = T(__builtin_inf());

  AttentionTiles(const Attention& arguments, Index query_block)
      : a_(arguments),
        query_block_(query_block),
        tail_(a_.keys % w <= few<T> ? a_.keys % w : 0),
        short_(a_.queries <= query_block && a_.keys <= key_block) {}

  void take(Arena& arena) { allowed_ = arena.take<Lanes>(query_block_ * words); }

  static constexpr Index panels(Index columns) { return ceil_div(columns, panel_width); }
  static constexpr Index padded(Index columns) { return panels(columns) * panel_width; }
  static constexpr int used(Index columns) { return int(smaller(NV, ceil_div(columns, w))); }

  // Of the open head.
  T* at(const Heads& tensor, Index row = 0) const {
    return static_cast<T*>(tensor.data) + offset(tensor) + row * tensor.row;
  }

  // Returns whether its mask is another than the one before.
  bool open(Index head) {
    batch_ = head / a_.heads, head_ = head % a_.heads;
    const Index next = head + 1 < a_.batch * a_.heads ? head + 1 : head;
    next_batch_ = next / a_.heads, next_head_ = next % a_.heads;
    const char* const before = mask_;
    mask_ = static_cast<const char*>(a_.mask.data) + offset(a_.mask) * mask_bytes();
    const bool another = !opened_ || before != mask_;
    if (short_ && another) fill(0, a_.queries, 0);
    opened_ = true;
    return another;
  }

  // The next head's part of a tensor, to be asked for while the open one is worked on.
  void coming(const Heads& tensor, Index rows, Index width) {
    ahead_.add(static_cast<T*>(tensor.data) + next_batch_ * tensor.batch + next_head_ * tensor.head,
               tensor.row, rows, width);
  }

  // The panels of a block of keys that some of these queries attend to, from the first such to the
  // last, and the end of their keys.
  struct Needed {
    Index begin, end, keys;
    bool none() const { return begin >= end; }
  };

  // A head's keys or values [Lk, k] to out [panels(Lk)][k][panel_width]: row i becomes column i.
  // The last few stay as they are.
  void pack_columns(const Heads& tensor, Index k, T* out) const {
    const Index n = a_.keys - tail_;
    for (Index v = 0; v < ceil_div(n, w); ++v)
      pack_columns_transposed(at(tensor) + v * w * tensor.row, tensor.row, n - v * w, k,
                              out + (v / NV) * k * panel_width + v % NV * w, panel_width);
  }

  // out [rows, ..ld] of a block's keys = a tile's rows of one tensor by the rows of another, whose
  // columns are packed.
  void products(const Heads& tile, Index query, Index rows, const Heads& of_keys, const T* packed,
                Index k, Index key, const Needed& needed, T* out, Index ld) const {
    const Index last = smaller(needed.keys, a_.keys - tail_ - key);
    for (Index c = needed.begin * panel_width; c < last; c += panel_width)
      tile_product<T, NV>(used(last - c), rows, at(tile, query), tile.row, 1,
                          packed + (key + c) * k, k, out + c, false, ld);
    if (last < needed.keys)
      few_products(at(tile, query), tile.row, rows, at(of_keys, key + last), of_keys.row, tail_, k,
                   out + last, ld);
  }

  // [n, k] to out [panels(k)][n][panel_width]. Returns out, or the source if that is one panel.
  static const T* pack_panels(const T* source, Index ld, Index n, Index k, T* out) {
    if (ld == panel_width && k == panel_width) return source;
    T* const packed = out;
    for (; k > 0; source += panel_width, k -= panel_width)
      for (Index i = 0; i < n; ++i, out += panel_width)
        for (Index v = 0; v < smaller(panel_width, k); v += w)
          V::load(source + i * ld + v, k - v).store(out + v);
    return packed;
  }

  // Whether a result is to go past the caches: it would not stay in them, and a third of what short
  // heads read was what they were about to overwrite. Its rows must be whole aligned vectors.
  bool streams(const Heads& result, Index rows, Index width) const {
    constexpr Index large = 4 << 20;
    const Index strides = result.batch | result.head | result.row | width;
    return reinterpret_cast<std::uintptr_t>(result.data) % vector_bytes == 0 && strides % w == 0 &&
           a_.batch * a_.heads * rows * width * Index(sizeof(T)) > large;
  }

  // How a product meets its result's memory: as it is, asking first for what is written without
  // having been read, or past the caches (whole vectors that are not added to).
  enum class Result { plain, asked, streamed };

  // out [rows, width], its rows `ld` apart, = or += a [rows, depth] b; b's panels have
  // `panel_rows` rows. A streamed row may be multiplied by its factor.
  template <Result how>
  static FASTRNN_INLINE void product(Index rows, const T* a, Index row_stride, Index k_stride,
                                     const T* b, Index panel_rows, Index depth, Index width, T* out,
                                     Index ld, bool add, const T* factors = nullptr) {
    for (; width > 0; width -= panel_width, out += panel_width, b += panel_rows * panel_width) {
      const Index columns = smaller(width, panel_width);
      if (columns % w == 0 && how != Result::streamed) {
        if (how == Result::asked && !add)
          for (Index r = 0; r < rows; ++r)
            for (Index c = 0; c < columns; c += 64 / Index(sizeof(T)))
              __builtin_prefetch(out + r * ld + c, 1);
        tile_product<T, NV>(used(columns), rows, a, row_stride, k_stride, b, depth, out, add, ld);
        continue;
      }
      alignas(64) T tile[most_rows * panel_width];
      tile_product<T, NV>(used(columns), rows, a, row_stride, k_stride, b, depth, tile, false);
      for (Index r = 0; r < rows; ++r)
        for (Index c = 0; c < columns; c += w) {
          V sum = V::load(tile + r * panel_width + c);
          if (how == Result::streamed && factors) sum = sum * V(factors[r]);
          T* const to = out + r * ld + c;
          if (how == Result::streamed)
            sum.stream(to);
          else
            (add ? V::load(to, columns - c) + sum : sum).store(to, columns - c);
        }
    }
  }

  static void zero(T* out, Index ld, Index rows, Index width) {
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < width; c += w) V(T(0)).store(out + r * ld + c, width - c);
  }

  Needed needed(Index query, Index rows, Index key) const {
    Index keys = smaller(key_block, a_.keys - key);
    if (a_.causal) keys = smaller(keys, query + rows - key);
    if (keys <= 0) return {0, 0, 0};
    Index begin = 0, end = panels(keys);
    if (a_.mask_kind != Mask::none) {
      while (begin < end && masked_out(query, rows, key + begin * panel_width)) ++begin;
      while (begin < end && masked_out(query, rows, key + (end - 1) * panel_width)) --end;
    }
    // None begins at 0: the end of the last panel may lie beyond a row.
    if (begin >= end) return {0, 0, 0};
    return {begin, end, smaller(keys, end * panel_width)};
  }

  // Calls f with whether the mask is added as a constant.
  template <class F>
  FASTRNN_INLINE void with_mask(const F& f) const {
    if (a_.mask_kind == Mask::additive)
      f(std::true_type());
    else
      f(std::false_type());
  }

  // A query's row of a block of keys.
  struct Row {
    const Lanes* allowed;  // which of them it attends to
    const char* mask;
    Index keys, mask_row;  // how many there are; bytes
    FASTRNN_INLINE void next() {
      allowed += words;
      mask += mask_row;
    }
  };
  // The first of a tile, until the next tile's.
  Row row(Index query, Index rows, Index key) {
    const Index block = smaller(key_block, a_.keys - key);
    const bool all = a_.mask_kind != Mask::boolean && !(a_.causal && query + 1 < key + block);
    if (!short_ && !(all && all_of_ == block)) {
      fill(query, all ? most_rows : rows, key);
      all_of_ = all ? block : 0;
    }
    return {allowed_ + (short_ ? query * words : 0), mask_at(query, key), a_.keys - key,
            a_.mask.row * mask_bytes()};
  }

  // From products of the query with the row's keys from c on, scores less `base`: -inf where the
  // query does not attend, and beyond the last key.
  template <bool additive>
  FASTRNN_INLINE V scores(V products, V scale, const Row& row, Index c, V base) const {
    V x = products * scale;
    if constexpr (additive) {
      const T* const values = reinterpret_cast<const T*>(row.mask);
      x = x + (a_.mask_column == 0 ? V(*values) : V::load(values + c, row.keys - c));
    }
    return choose(row.allowed[std::size_t(c) / w], x - base, V(-infinity));
  }

  // Which weights of a tile dropout leaves, from key `begin` of a block on: out [rows][words].
  void kept(Index query, Index rows, Index key, Index begin, Index end, Lanes* out) const {
    constexpr int quads = 16;  // at a time
    alignas(64) std::uint32_t drawn[4 * quads];
    for (Index r = 0; r < rows; ++r, out += words)
      for (Index first = begin; first < end; first += 4 * quads) {
        philox<quads>(std::uint64_t(*a_.seed), std::uint32_t((key + first) / 4),
                      std::uint32_t(batch_ * a_.heads + head_), std::uint32_t(query + r), 0, drawn);
        for (Index i = 0; i < 4 * quads && first + i < end; i += w)
          out[(first + i) / w] = V::reach(drawn + i, a_.dropped_below);
      }
  }

  // The weights x [rows][stride] of a tile after dropout, their columns from `begin` on.
  void drop(T* x, Index stride, const Lanes* kept, Index rows, Index begin, Index end) const {
    const V factor(T(1 / (1 - a_.dropout)));
    for (Index r = 0; r < rows; ++r, x += stride, kept += words)
      for (Index c = begin; c < end; c += w)
        choose(kept[c / w], V::load(x + c) * factor, V(T(0))).store(x + c);
  }

  const Attention& a_;
  Ahead<T> ahead_;
  const Index query_block_, tail_;  // keys of the last vector that are few
  // Whether a head is one block. Then its rows are asked for while the one before is worked on, a
  // few at a time: a quarter of the time of such heads went into waiting for memory.
  const bool short_;

 private:
  // allowed_ [rows][words] of a tile, for all of a block's keys.
  void fill(Index query, Index rows, Index key) {
    const Index block = smaller(key_block, a_.keys - key);
    for (Index r = 0; r < rows; ++r) {
      const Index keys = a_.causal ? smaller(block, query + r + 1 - key) : block;
      const char* const mask = mask_at(query + r, key);
      for (Index c = 0; c < block; c += w) {
        Lanes bits = 0;
        if (c < keys) bits = V::first(keys - c);
        if (a_.mask_kind == Mask::boolean && bits)
          bits &= a_.mask_column ? V::nonzero(mask + c, keys - c) : Lanes(*mask ? ~0 : 0);
        allowed_[r * words + c / w] = bits;
      }
    }
  }

  // Whether the mask leaves none of a panel's keys to any of these queries.
  bool masked_out(Index query, Index rows, Index key) const {
    if (a_.mask.row == 0) rows = 1;
    const Index lanes = a_.mask_column == 0 ? 1 : smaller(panel_width, a_.keys - key);
    for (Index r = 0; r < rows; ++r) {
      const char* const mask = mask_at(query + r, key);
      if (a_.mask_kind == Mask::boolean) {
        for (Index c = 0; c < lanes; c += w)
          if (V::nonzero(mask + c, lanes - c)) return false;
      } else {
        for (Index c = 0; c < lanes; ++c)
          if (!(reinterpret_cast<const T*>(mask)[c] == -infinity)) return false;
      }
    }
    return true;
  }

  const char* mask_at(Index query, Index key) const {
    return mask_ + (query * a_.mask.row + key * a_.mask_column) * mask_bytes();
  }
  Index mask_bytes() const { return a_.mask_kind == Mask::boolean ? 1 : sizeof(T); }

  Index offset(const Heads& tensor) const { return batch_ * tensor.batch + head_ * tensor.head; }

  bool opened_ = false;                                  // any head
  Index batch_ = 0, head_ = 0, next_batch_, next_head_;  // the open head
  const char* mask_ = nullptr;                           // its mask
  Lanes* allowed_;    // [query_block][words]: a tile's keys, or a short head's
  Index all_of_ = 0;  // a tile's are all of so many, for every query
};

}  // namespace fastrnn::FASTRNN_ISA
