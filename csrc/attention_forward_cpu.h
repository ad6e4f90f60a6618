// Attention's forward pass: for a block of queries, key block by key block, the scores, their
// weights against the largest so far, and the weighted sum of the values.
#pragma once

#include "attention_tiles_cpu.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
class AttentionForwardLoop : AttentionTiles<T> {
  using Tiles = AttentionTiles<T>;
  using Tiles::infinity, Tiles::block_panels, Tiles::panels, Tiles::padded;
  using Tiles::NV, Tiles::w, Tiles::panel_width, Tiles::most_rows, Tiles::key_block, Tiles::used;
  using typename Tiles::Needed, typename Tiles::V;
  static constexpr Index query_block = 4 * most_rows;

 public:
  AttentionForwardLoop(const AttentionForward& arguments, char* workspace, int threads)
      : Tiles(arguments), s_(arguments), workspace_(workspace), threads_(threads) {
    Arena arena(nullptr);
    take(arena);
    bytes_ = arena.bytes();
  }

  Index bytes() const { return bytes_ * threads_; }

  void run(const Team& team) {
    Arena arena(workspace_ + team.rank * bytes_);
    take(arena);
    const Index blocks = ceil_div(s_.queries, query_block), items = s_.batch * s_.heads * blocks;
    Index packed = -1;
    for (Index item = team.begin(items); item < team.end(items); ++item) {
      const Index head = item / blocks, i = item % blocks;
      if (head != packed) {
        this->open(head);
        Tiles::pack_columns(this->at(s_.key), s_.key.row, s_.keys, s_.size, keys_);
        Tiles::pack_panels(this->at(s_.value), s_.value.row, s_.keys, s_.value_size, T(1), values_);
        packed = head;
      }
      // From both ends in turns: halves of a causal head weigh the same.
      const Index block = i % 2 ? blocks - 1 - i / 2 : i / 2;
      queries(head, block * query_block);
    }
  }

 private:
  void take(Arena& arena) {
    keys_ = arena.take<T>(padded(s_.keys) * s_.size);
    values_ = arena.take<T>(padded(s_.value_size) * s_.keys);
    queries_ = arena.take<T>(query_block * s_.size);
    sums_ = arena.take<T>(padded(s_.value_size) * query_block);
    most_ = arena.take<T>(query_block);
    totals_ = arena.take<T>(query_block * w);
    scores_ = arena.take<T>(most_rows * key_block);
    kept_ = arena.take<T>(key_block);
  }

  void queries(Index head, Index first) {
    const Index count = smaller(query_block, s_.queries - first), size = s_.size;
    Tiles::pack_rows(this->at(s_.query, first), s_.query.row, count, size, T(s_.scale), queries_);
    Tiles::zero(sums_, query_block, count, s_.value_size);
    for (Index r = 0; r < count; ++r) most_[r] = -infinity;
    for (Index i = 0; i < count * w; i += w) V(T(0)).store(totals_ + i);
    const RowBlocks<NV> tiles(count);
    for (Index key = 0; key < s_.keys; key += key_block)
      for (Index t = 0, row = 0, rows; t < tiles.count; ++t, row += rows) {
        rows = tiles.start(t + 1) - row;
        const Needed needed = Tiles::needed(first + row, rows, key);
        if (needed.none()) continue;
        scores(first + row, row, rows, key, needed);
        weigh(first + row, row, rows, key, needed);
        if (short_)
          for (Index r = first + row; r < first + row + rows; ++r)
            Tiles::template prefetch<1>(this->at(s_.output, r), s_.value_size);
        sum_values(row, rows, key, needed);
      }
    finish(head, first, count);
  }

  // scores_ [rows][key_block] of the tile.
  void scores(Index query, Index row, Index rows, Index key, const Needed& needed) {
    for (Index p = needed.begin; p < needed.end; ++p) {
      T* const tile = scores_ + p * panel_width;
      const int vectors = used(needed.keys - p * panel_width);
      tile_product<T, NV>(vectors, rows, queries_ + row * s_.size, s_.size, 1,
                          keys_ + (key + p * panel_width) * s_.size, s_.size, tile, false,
                          key_block);
      this->mask_scores(query, rows, key + p * panel_width, vectors, tile, key_block);
    }
  }

  // Turns the tile's scores into weights, exp(score - the row's largest so far).
  void weigh(Index query, Index row, Index rows, Index key, const Needed& needed) {
    const Index begin = needed.begin * panel_width, end = needed.keys;
    for (Index r = 0; r < rows; ++r) {
      T* const scores = scores_ + r * key_block;
      if (short_) {
        Tiles::prefetch(this->next(s_.query, row + r), s_.size);
        Tiles::prefetch(this->next(s_.key, row + r), s_.size);
        Tiles::prefetch(this->next(s_.value, row + r), s_.value_size);
      }
      const T before = most_[row + r];
      V high(before);
      for (Index c = begin; c < end; c += w) high = Larger()(high, V::load(scores + c));
      const T most = across(high, Larger());
      const V base(most == -infinity ? T(0) : most);
      if (most > before) fade(row + r, before, most);
      V total = V::load(totals_ + (row + r) * w);
      for (Index c = begin; c < end; c += w) {
        const V weight = exp_or_zero(V::load(scores + c) - base);
        total = total + weight;
        weight.store(scores + c);
      }
      total.store(totals_ + (row + r) * w);
      if (s_.dropout == 0) continue;
      this->kept(query + r, key + begin, end - begin, kept_);
      Tiles::multiply(scores + begin, kept_, end - begin);
    }
  }

  // What was summed against a smaller score, against the larger.
  void fade(Index row, T before, T most) {
    most_[row] = most;
    if (before == -infinity) return;  // nothing was
    const V share = exp_or_zero(V(before - most));
    (V::load(totals_ + row * w) * share).store(totals_ + row * w);
    for (Index v = 0; v < ceil_div(s_.value_size, w); ++v) {
      T* const sum = sums_ + (v / NV * query_block + row) * panel_width + v % NV * w;
      (V::load(sum) * share).store(sum);
    }
  }

  void sum_values(Index row, Index rows, Index key, const Needed& needed) {
    const Index first = needed.begin * panel_width;
    for (Index p = 0; p < panels(s_.value_size); ++p)
      tile_product<T, NV>(used(s_.value_size - p * panel_width), rows, scores_ + first, key_block,
                          1, values_ + (p * s_.keys + key + first) * panel_width,
                          needed.keys - first, sums_ + (p * query_block + row) * panel_width);
  }

  void finish(Index head, Index first, Index count) {
    T *const out = this->at(s_.output, first), *const sums = sums_, *const totals = totals_;
    const Index D = s_.value_size, ld = s_.output.row;
    alignas(64) T total[query_block] = {};
    for (Index r = 0; r < count; ++r) total[r] = across(V::load(totals + r * w), Add());
    for (Index r = 0; r < count; ++r) {
      const V share(total[r] == 0 ? T(0) : 1 / total[r]);
      for (Index v = 0; v * w < D; ++v)
        (V::load(sums + (v / NV * query_block + r) * panel_width + v % NV * w) * share)
            .store(out + r * ld + v * w, D - v * w);
    }
    T* const logs = static_cast<T*>(s_.logsumexp) + head * s_.queries + first;
    for (Index r = 0; r < count; r += w) {
      const V sum = V::load(total + r), log = V::load(most_ + r) + log_positive(sum);
      V(sum.v == V(T(0)).v ? V(infinity).v : log.v).store(logs + r, count - r);
    }
  }

  const AttentionForward& s_;
  char* const workspace_;
  const int threads_;
  Index bytes_;
  // Whether a head is one block. Then its rows are asked for while the one before is worked on, a
  // few at a time: a quarter of the time of such heads went into waiting for memory.
  const bool short_ = s_.queries <= query_block && s_.keys <= key_block;
  T *keys_, *values_;   // [panels][E][panel_width], [panels(D)][Lk][panel_width]
  T *queries_, *sums_;  // [block, E], scaled; [panels(D)][block][panel_width]
  T *most_, *totals_;   // [block], [block, w]: largest score, sums of weights by lane
  T *scores_, *kept_;   // [rows][key_block], also as weights; [key_block]
};

}  // namespace fastrnn::FASTRNN_ISA
