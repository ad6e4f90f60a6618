// One head of attention at a time: its memory, the masks and dropout.
//
// A tile is a few queries by one panel of keys; a block is the rows of several tiles by `key_block`
// keys. Blocks are of one size whatever the number of threads: same sums, same bits.
#pragma once

#include "ahead_cpu.h"
#include "attention_rounded_cpu.h"
#include "gemm_cpu.h"
#include "kernels_cpu.h"
#include "philox_cpu.h"
#include "softmax_cpu.h"
#include "workspace.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
class AttentionHead {
 protected:
  using V = Vec<T>;
  static constexpr int NV = 2;
  static constexpr Index w = V::width, panel_width = NV * w, most_rows = tile_rows<NV>;
  static constexpr Index key_block = 128, words = key_block / w;
  static constexpr T infinity = T(__builtin_inf());

  AttentionHead(const Attention& arguments, Index query_block)
      : a_(arguments),
        query_block_(query_block),
        short_(a_.queries <= query_block && a_.keys <= key_block) {}

  void take(Arena& arena) { allowed_ = arena.take<Lanes>(query_block_ * words); }

  static constexpr Index panels(Index columns) { return ceil_div(columns, panel_width); }

  // Of the open head.
  template <class S = T>
  S* at(const Heads& tensor, Index row = 0) const {
    return static_cast<S*>(tensor.data) + offset(tensor) + row * tensor.row;
  }

  // Of tensors of bfloat16: the open head into the copy that the loops read.
  void widen(const Heads& tensor, Index rows, const Heads& copy) const {
    if constexpr (sizeof(T) == 4)
      if (a_.bfloat16) widen_rows(at<Bf16>(tensor), tensor.row, rows, copy.row, at(copy));
  }
  // And some rows of a result's copy into the tensor.
  void narrow(const Heads& copy, Index first, Index rows, const Heads& tensor) const {
    if constexpr (sizeof(T) == 4)
      if (a_.bfloat16)
        narrow_rows(at(copy, first), rows, copy.row, at<Bf16>(tensor, first), tensor.row);
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
    const Index item = a_.bfloat16 ? 2 : sizeof(T);
    const Index first = next_batch_ * tensor.batch + next_head_ * tensor.head;
    ahead_.add(static_cast<const char*>(tensor.data) + first * item, tensor.row * item, rows,
               width * item);
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
  Ahead ahead_;
  const Index query_block_;
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
