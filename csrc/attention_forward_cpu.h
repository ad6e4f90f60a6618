// Attention's forward pass: for a block of queries, key block by key block, the scores, their
// weights (against the largest so far, if they are far from 0) and the weighted sum of the values.
#pragma once

#include "attention_tiles_cpu.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
class AttentionForwardLoop : AttentionTiles<T, AttentionForward> {
  using Tiles = AttentionTiles<T, AttentionForward>;
  using Tiles::given_, Tiles::s_, Tiles::workspace_, Tiles::threads_, Tiles::bytes_;
  using Tiles::infinity, Tiles::panels, Tiles::padded, Tiles::short_, Tiles::few_;
  using Tiles::NV, Tiles::w, Tiles::panel_width, Tiles::most_rows, Tiles::key_block, Tiles::words;
  using typename Tiles::Needed, typename Tiles::Result, typename Tiles::V;
  static constexpr Index query_block = 48;  // a head of no more is one block, whatever the set

 public:
  AttentionForwardLoop(const AttentionForward& arguments, char* workspace, int threads)
      : Tiles(arguments, query_block, workspace, threads) {
    Arena arena(nullptr);
    take(arena);
    bytes_ = arena.bytes();
  }

  using Tiles::bytes;

  void run(const Team& team) {
    Arena arena(workspace_ + team.rank * bytes_);
    take(arena);
    const Index blocks = ceil_div(s_.queries, query_block), items = s_.batch * s_.heads * blocks;
    Index packed = -1;
    for (Index item = team.begin(items); item < team.end(items); ++item) {
      const Index head = item / blocks, i = item % blocks;
      if (head != packed) {
        new_mask_ = this->open(head);
        Tiles::pack_columns(s_.key, s_.size, keys_);
        values_ = Tiles::pack_panels(this->at(s_.value), s_.value.row, few_ ? 0 : s_.keys,
                                     s_.value_size, packed_values_);
        packed = head;
        if (short_ && !stream_) this->coming(given_.output, s_.queries, s_.value_size);
      }
      // From both ends in turns: halves of a causal head weigh the same.
      const Index block = i % 2 ? blocks - 1 - i / 2 : i / 2;
      queries(head, block * query_block);
    }
    if (stream_) V::streamed();
  }

 private:
  void take(Arena& arena) {
    Tiles::take(arena);
    keys_ = arena.take<T>(padded(s_.keys) * s_.size);
    packed_values_ = arena.take<T>(padded(s_.value_size) * s_.keys);
    most_ = arena.take<T>(query_block);
    totals_ = arena.take<T>(query_block + w);
    sums_ = arena.take<T>(most_rows * w);
    scores_ = arena.take<T>(most_rows * key_block);
    kept_ = arena.take<Lanes>(most_rows * words);
  }

  void queries(Index head, Index first) {
    const Index count = smaller(query_block, s_.queries - first);
    if (!attend<true>(first, count)) attend<false>(first, count);
    finish(head, first, count);
    Tiles::narrow(s_.output, first, count, given_.output);
  }

  // The weighted sums of a block of queries, not yet divided by the sum of the weights unless they
  // are streamed. The weights are exp(score), one pass over the scores, if `level`, and exp(score -
  // the row's largest) in two, if not. Returns whether a level block's scores were near enough to 0
  // for that.
  template <bool level>
  bool attend(Index first, Index count) {
    const Index D = s_.value_size;
    for (Index r = 0; r < count; ++r) most_[r] = level ? T(0) : -infinity, totals_[r] = 0;
    if (s_.keys == 0) Tiles::zero(this->at(s_.output, first), s_.output.row, count, D);
    const RowBlocks<NV> tiles(count);
    for (Index key = 0; key < s_.keys; key += key_block)
      for (Index t = 0, row = 0, rows; t < tiles.count; ++t, row += rows) {
        rows = tiles.start(t + 1) - row;
        T* const out = this->at(s_.output, first + row);
        Needed& needed = needed_[t];
        if (!short_ || new_mask_) needed = Tiles::needed(first + row, rows, key);
        if (needed.none()) {
          if (key == 0) Tiles::zero(out, s_.output.row, rows, D);
          continue;
        }
        Tiles::products(s_.query, first + row, rows, s_.key, keys_, s_.size, key, needed, scores_,
                        key_block);
        bool near = true;
        this->with_mask([&](auto additive) {
          if constexpr (level)
            near = weigh_level<additive()>(first, row, rows, key, needed);
          else
            weigh<additive()>(first, row, rows, key, needed);
        });
        if (!near || (level && short_ && lost(first, row, rows))) return false;
        sum_values(row, rows, key, needed, out);
      }
    return !level || short_ || !lost(first, 0, count);
  }

  // Whether the weights of one of these rows are so low that precision is lost, though it is not
  // masked out.
  bool lost(Index first, Index row, Index rows) const {
    for (Index r = row; r < row + rows; ++r)
      if (!(totals_[r] >= level_least_sum))
        for (Index key = 0; key < s_.keys; key += key_block)
          if (!Tiles::needed(first + r, 1, key).none()) return true;
    return false;
  }

  // Turns the tile's products into weights, exp(score). Returns whether none is large.
  template <bool additive>
  bool weigh_level(Index first, Index row, Index rows, Index key, const Needed& needed) {
    const Index begin = needed.begin * panel_width, end = needed.keys, query = first + row;
    const V scale(T(s_.scale)), nothing(T(0));
    V most(T(0));
    auto mask = this->row(query, rows, key);
    for (Index r = 0; r < rows; ++r, mask.next()) {
      T* const scores = scores_ + r * key_block;
      this->ahead_.ask();
      V total(T(0));
      for (Index c = begin; c < end; c += w) {
        const V score =
            this->template scores<additive>(V::load(scores + c), scale, mask, c, nothing);
        most = Larger()(most, score);
        const V weight = exp_or_zero(score);
        total = total + weight;
        weight.store(scores + c);
      }
      total.store(sums_ + r * w);
    }
    add_totals(row, rows);
    drop_some(query, rows, key, begin, end);
    return across(most, Larger()) <= level_most;
  }

  // Turns the tile's products into weights, exp(score - the row's largest so far).
  template <bool additive>
  void weigh(Index first, Index row, Index rows, Index key, const Needed& needed) {
    const Index begin = needed.begin * panel_width, end = needed.keys, query = first + row;
    const V scale(T(s_.scale)), nothing(T(0));
    auto mask = this->row(query, rows, key);
    for (Index r = 0; r < rows; ++r, mask.next()) {
      T* const scores = scores_ + r * key_block;
      V high(most_[row + r]);
      for (Index c = begin; c < end; c += w) {
        const V score =
            this->template scores<additive>(V::load(scores + c), scale, mask, c, nothing);
        score.store(scores + c);
        high = Larger()(high, score);
      }
      const T most = across(high, Larger());
      if (most > most_[row + r]) fade(first, row + r, most_[row + r], most);
      const V base(most == -infinity ? T(0) : most);
      V total(T(0));
      for (Index c = begin; c < end; c += w) {
        const V weight = exp_or_zero(V::load(scores + c) - base);
        total = total + weight;
        weight.store(scores + c);
      }
      total.store(sums_ + r * w);
    }
    add_totals(row, rows);
    drop_some(query, rows, key, begin, end);
  }

  void add_totals(Index row, Index rows) {
    for (Index r = 0; r < rows; r += w) {
      V sums[w];
#pragma GCC unroll 16
      for (int i = 0; i < int(w); ++i) sums[i] = V::load(sums_ + smaller(r + i, rows - 1) * w);
      const V before = V::load(totals_ + row + r, rows - r);
      (before + lane_sums(sums)).store(totals_ + row + r, rows - r);
    }
  }

  void drop_some(Index query, Index rows, Index key, Index begin, Index end) {
    if (s_.dropout == 0) return;
    this->kept(query, rows, key, begin, end, kept_);
    Tiles::drop(scores_, key_block, kept_, rows, begin, end);
  }

  // Adds the tile's weighted values to its output. What is streamed is complete and cannot be
  // divided by the sum of its weights later.
  void sum_values(Index row, Index rows, Index key, const Needed& needed, T* out) {
    const Index begin = needed.begin * panel_width;
    if (few_)
      return Tiles::few_sums(rows, scores_ + begin, key_block, s_.value, key + begin,
                             needed.keys - begin, s_.value_size, out, s_.output.row, key > 0);
    alignas(64) T shares[ceil_div(most_rows, w) * w];
    for (Index r = 0; stream_ && r < rows; r += w)
      share(V::load(totals_ + row + r)).store(shares + r);
    const auto product = stream_ ? Tiles::template product<Result::streamed>
                                 : Tiles::template product<Result::plain>;
    product(rows, scores_ + begin, key_block, 1, values_ + (key + begin) * panel_width, s_.keys,
            needed.keys - begin, s_.value_size, out, s_.output.row, key > 0,
            stream_ ? shares : nullptr);
  }

  static FASTRNN_INLINE V share(V total) {
    const V share = V(T(1)) / total;
    return total.v == V(T(0)).v ? V(T(0)).v : share.v;
  }

  // What was summed against a smaller score, against the larger.
  void fade(Index first, Index row, T before, T most) {
    most_[row] = most;
    if (before == -infinity) return;  // nothing was
    const V share = exp_or_zero(V(before - most));
    totals_[row] *= share.v[0];
    multiply_row(this->at(s_.output, first + row), share);
  }

  void multiply_row(T* out, V share) {
    for (Index c = 0; c < s_.value_size; c += w)
      (V::load(out + c, s_.value_size - c) * share).store(out + c, s_.value_size - c);
  }

  void finish(Index head, Index first, Index count) {
    if (!stream_)
      for (Index r = 0; r < count; ++r)
        multiply_row(this->at(s_.output, first + r), share(V(totals_[r])));
    T* const logs = static_cast<T*>(s_.logsumexp) + head * s_.queries + first;
    for (Index r = 0; r < count; r += w) {
      const V sum = V::load(totals_ + r), log = V::load(most_ + r) + log_positive(sum);
      V(sum.v == V(T(0)).v ? V(infinity).v : log.v).store(logs + r, count - r);
    }
  }

  const bool stream_ =
      short_ && !few_ && !s_.bfloat16 && this->streams(s_.output, s_.queries, s_.value_size);
  bool new_mask_;
  Needed needed_[ceil_div(query_block, most_rows)];  // of a block's tiles; a short head's are kept
  const T* values_;
  T *keys_, *packed_values_;  // [panels][E][panel_width], [panels(D)][Lk][panel_width]
  T *most_, *totals_;         // [block]: largest score, or 0; sum of weights
  T* sums_;                   // [rows, w]: a tile's sums of weights by lane
  T* scores_;                 // [rows][key_block]: products, scores, weights
  Lanes* kept_;               // [rows][words]: of dropout
};

}  // namespace fastrnn::FASTRNN_ISA
