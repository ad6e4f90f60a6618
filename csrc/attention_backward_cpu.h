// Attention's backward pass. The weights are made again from the scores and their logsumexp, block
// by block; nothing of them is kept between the passes.
#pragma once

#include "attention_tiles_cpu.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
class AttentionBackwardLoop : AttentionTiles<T, AttentionBackward> {
  using Tiles = AttentionTiles<T, AttentionBackward>;
  using Tiles::given_, Tiles::s_, Tiles::workspace_, Tiles::threads_, Tiles::bytes_;
  using Tiles::NV, Tiles::w, Tiles::panel_width, Tiles::most_rows, Tiles::key_block, Tiles::words;
  using Tiles::panels, Tiles::padded, Tiles::short_, Tiles::few_;
  using typename Tiles::Needed, typename Tiles::Result, typename Tiles::V;
  static constexpr Index query_block = 8 * most_rows;

 public:
  AttentionBackwardLoop(const AttentionBackward& arguments, char* workspace, int threads)
      : Tiles(arguments, query_block, workspace, threads) {
    Arena arena(nullptr);
    take(arena);
    bytes_ = arena.bytes();
  }

  using Tiles::bytes;

  void run(const Team& team) {
    Arena arena(workspace_ + team.rank * bytes_);
    take(arena);
    const Index heads = s_.batch * s_.heads, query_blocks = ceil_div(s_.queries, query_block);
    const Index key_blocks = ceil_div(s_.keys, key_block);
    // A head at once takes five products. Few heads for many threads are cut up, which takes seven,
    // each sum in the same order.
    if (ceil_div(heads, team.size) * team.size * 5 <= heads * 7) {
      for (Index head = team.begin(heads); head < team.end(heads); ++head) {
        pack(head);
        gradients({0, query_blocks}, {0, key_blocks}, true, true);
      }
    } else {
      Index items = heads * key_blocks;
      for (Index item = team.begin(items); item < team.end(items); ++item) {
        pack(item / key_blocks);
        gradients({0, query_blocks}, {item % key_blocks, item % key_blocks + 1}, false, true);
      }
      items = heads * query_blocks;
      for (Index item = team.begin(items); item < team.end(items); ++item) {
        pack(item / query_blocks);
        gradients({item % query_blocks, item % query_blocks + 1}, {0, key_blocks}, true, false);
      }
    }
    if (stream_) V::streamed();
    if (s_.grad_mask.data) mask_gradients(team);
  }

 private:
  struct Blocks {
    Index begin, end;
  };

  void take(Arena& arena) {
    Tiles::take(arena);
    const Index E = s_.size, D = s_.value_size;
    if (s_.bfloat16) {
      s_.grad_output = copy_of_head<T>(arena, s_.queries, D);
      s_.grad_query = copy_of_head<T>(arena, s_.queries, E);
      s_.grad_key = copy_of_head<T>(arena, s_.keys, E);
      s_.grad_value = copy_of_head<T>(arena, s_.keys, D);
    }
    keys_by_column_ = arena.take<T>(padded(s_.keys) * E);
    values_by_column_ = arena.take<T>(padded(s_.keys) * D);
    packed_keys_ = arena.take<T>(padded(E) * s_.keys);
    packed_queries_ = arena.take<T>(padded(E) * s_.queries);
    packed_grads_ = arena.take<T>(padded(D) * s_.queries);
    means_ = arena.take<T>(s_.queries);
    weights_ = arena.take<T>(query_block * stride_);
    slopes_ = arena.take<T>(query_block * stride_);
    kept_ = arena.take<Lanes>(most_rows * words);
  }

  // Packs a head's operands, unless they are; and rowsum(grad_output * output), the mean slope.
  void pack(Index head) {
    if (head == packed_) return;
    packed_ = head;
    this->open(head);
    const Index E = s_.size, D = s_.value_size, Lq = s_.queries, Lk = s_.keys;
    Tiles::read(given_.output, Lq, D, s_.output);
    Tiles::read(given_.grad_output, Lq, D, s_.grad_output);
    const T *out = this->at(s_.output), *grad = this->at(s_.grad_output);
    Tiles::pack_columns(s_.key, E, keys_by_column_);
    Tiles::pack_columns(s_.value, D, values_by_column_);
    keys_ = Tiles::pack_panels(this->at(s_.key), s_.key.row, few_ ? 0 : Lk, E, packed_keys_);
    queries_ = Tiles::pack_panels(this->at(s_.query), s_.query.row, Lq, E, packed_queries_);
    grads_ = Tiles::pack_panels(grad, s_.grad_output.row, Lq, D, packed_grads_);
    for (Index first = 0; first < Lq; first += w) {
      V sums[w];
      for (Index lane = 0; lane < w; ++lane) {
        const Index i = smaller(first + lane, Lq - 1);
        sums[lane] = V(T(0));
        for (Index c = 0; c < D; c += w)
          sums[lane] = sums[lane] + V::load(grad + i * s_.grad_output.row + c, D - c) *
                                        V::load(out + i * s_.output.row + c, D - c);
      }
      lane_sums(sums).store(means_ + first, Lq - first);
    }
  }

  // The gradients of the open head that these blocks make: of the blocks' queries (which then need
  // all blocks of keys), of their keys and values (all blocks of queries), or both.
  void gradients(Blocks query_blocks, Blocks key_blocks, bool of_queries, bool of_keys) {
    const Index E = s_.size, D = s_.value_size, begin = query_blocks.begin * query_block;
    const Index end = smaller(s_.queries, query_blocks.end * query_block);
    if (of_queries && s_.keys == 0)
      Tiles::zero(this->at(s_.grad_query, begin), s_.grad_query.row, end - begin, E);
    for (Index key = key_blocks.begin * key_block;
         key < smaller(s_.keys, key_blocks.end * key_block); key += key_block) {
      const Index count = smaller(key_block, s_.keys - key);
      T *grad_key = this->at(s_.grad_key, key), *grad_value = this->at(s_.grad_value, key);
      const auto begin_with_zeros = [&] {
        Tiles::zero(grad_key, s_.grad_key.row, count, E);
        Tiles::zero(grad_value, s_.grad_value.row, count, D);
      };
      bool begun = !of_keys;
      for (Index query = begin; query < end; query += query_block) {
        const Block block = slopes(query, key, T(s_.scale), of_queries);
        if (!of_keys || block.none()) continue;
        const bool whole = block.columns.begin == 0 && block.columns.end == count;
        if (!begun && !whole) begin_with_zeros();
        const bool add = begun || !whole;
        const Index first = query + block.rows.begin;
        transposed(block, weights_, grads_, first, D, grad_value, s_.grad_value.row, add);
        transposed(block, slopes_, queries_, first, E, grad_key, s_.grad_key.row, add);
        begun = true;
      }
      if (!begun) begin_with_zeros();
      if (!of_keys) continue;
      Tiles::narrow(s_.grad_key, key, count, given_.grad_key);
      Tiles::narrow(s_.grad_value, key, count, given_.grad_value);
    }
    if (of_queries) Tiles::narrow(s_.grad_query, begin, end - begin, given_.grad_query);
  }

  // The rows and columns of a block outside which its weights are 0.
  struct Block {
    Blocks rows, columns;
    bool none() const { return rows.begin >= rows.end; }
  };

  // Weights and slopes, dS times `factor`, of a block [query_block, stride_]; both are zeros in the
  // rest of what is returned. Makes the slopes' share of the gradient of the queries if that is
  // wanted.
  Block slopes(Index query, Index key, T factor, bool of_queries) {
    const Index count = smaller(query_block, s_.queries - query), E = s_.size;
    const Index keys = smaller(key_block, s_.keys - key);
    const RowBlocks<NV> tiles(count);
    Block block{{count, 0}, {key_block, 0}};
    for (Index t = 0, first = 0, rows; t < tiles.count; ++t, first += rows) {
      rows = tiles.start(t + 1) - first;
      const Needed needed = Tiles::needed(query + first, rows, key);
      const Index begin = needed.begin * panel_width, end = ceil_div(needed.keys, w) * w;
      T *const weights = weights_ + first * stride_, *const slopes = slopes_ + first * stride_;
      if (begin > 0 || end < keys)
        for (T* out : {weights, slopes}) {
          Tiles::zero(out, stride_, rows, begin);
          Tiles::zero(out + end, stride_, rows, ceil_div(keys - end, w) * w);
        }
      T* const grad_query = this->at(s_.grad_query, query + first);
      if (needed.none()) {
        if (of_queries && key == 0) Tiles::zero(grad_query, s_.grad_query.row, rows, E);
        continue;
      }
      block.rows = {smaller(block.rows.begin, first), first + rows};
      block.columns.begin = smaller(block.columns.begin, begin);
      block.columns.end = larger(block.columns.end, needed.keys);
      const Index row = query + first;
      Tiles::products(s_.query, row, rows, s_.key, keys_by_column_, E, key, needed, weights,
                      stride_);
      Tiles::products(s_.grad_output, row, rows, s_.value, values_by_column_, s_.value_size, key,
                      needed, slopes, stride_);
      this->with_mask([&](auto additive) {
        tile_slopes<additive()>(query + first, rows, key, needed, factor, weights, slopes);
      });
      if (of_queries && few_)
        Tiles::few_sums(rows, slopes + begin, stride_, s_.key, key + begin, needed.keys - begin, E,
                        grad_query, s_.grad_query.row, key > 0);
      else if (of_queries)
        product(rows, slopes + begin, stride_, 1, keys_ + (key + begin) * panel_width, s_.keys,
                needed.keys - begin, E, grad_query, s_.grad_query.row, key > 0);
    }
    return block;
  }

  // Turns these products into weights and slopes.
  template <bool additive>
  void tile_slopes(Index query, Index rows, Index key, const Needed& needed, T factor, T* weights,
                   T* slopes) {
    const T* logs = static_cast<const T*>(s_.logsumexp) + packed_ * s_.queries + query;
    const T* means = means_ + query;
    const V scale(T(s_.scale)), part(factor);
    const Index begin = needed.begin * panel_width, end = needed.keys;
    if (s_.dropout > 0) {
      this->kept(query, rows, key, begin, end, kept_);
      Tiles::drop(slopes, stride_, kept_, rows, begin, end);
    }
    auto mask = this->row(query, rows, key);
    for (Index r = 0; r < rows; ++r, mask.next()) {
      this->ahead_.ask();
      const V log(logs[r]), mean(means[r]);
      for (Index c = r * stride_ + begin; c < r * stride_ + end; c += w) {
        const V weight = exp_or_zero(this->template scores<additive>(V::load(weights + c), scale,
                                                                     mask, c - r * stride_, log));
        const V slope = weight * part * (V::load(slopes + c) - mean);
        weight.store(weights + c);
        slope.store(slopes + c);
      }
    }
    if (s_.dropout > 0) Tiles::drop(weights, stride_, kept_, rows, begin, end);
  }

  // out [columns, width] of the block's columns = or += a^T b: `a` a block's weights or slopes, b's
  // panels from row `first` on.
  void transposed(const Block& block, const T* a, const T* b, Index first, Index width, T* out,
                  Index ld, bool add) {
    const RowBlocks<NV> tiles(block.columns.end - block.columns.begin);
    a += block.rows.begin * stride_ + block.columns.begin;
    out += block.columns.begin * ld;
    for (Index t = 0, column = 0, columns; t < tiles.count; ++t, column += columns) {
      columns = tiles.start(t + 1) - column;
      product(columns, a + column, 1, stride_, b + first * panel_width, s_.queries,
              block.rows.end - block.rows.begin, width, out + column * ld, ld, add);
    }
  }

  // A share of a gradient.
  void product(Index rows, const T* a, Index row_stride, Index k_stride, const T* b,
               Index panel_rows, Index depth, Index width, T* out, Index ld, bool add) {
    const auto run = stream_ && !add ? Tiles::template product<Result::streamed>
                                     : Tiles::template product<Result::asked>;
    run(rows, a, row_stride, k_stride, b, panel_rows, depth, width, out, ld, add, nullptr);
  }

  // Adds the slopes to the mask's gradient, which begins as zeros. Each thread owns rows of the
  // mask and goes through all heads they meet.
  void mask_gradients(const Team& team) {
    const Heads& grad = s_.grad_mask;
    const Index blocks = ceil_div(s_.queries, query_block), parts = grad.row ? blocks : 1;
    const Index batches = grad.batch ? s_.batch : 1, masks = batches * (grad.head ? s_.heads : 1);
    for (Index item = team.begin(masks * parts); item < team.end(masks * parts); ++item) {
      const Index mask = item / parts, part = item % parts;
      for (Index head = 0; head < s_.batch * s_.heads; ++head) {
        const Index b = grad.batch ? head / s_.heads : 0, h = grad.head ? head % s_.heads : 0;
        if (b * (masks / batches) + h != mask) continue;
        pack(head);
        for (Index i = grad.row ? part : 0; i < (grad.row ? part + 1 : blocks); ++i)
          for (Index key = 0; key < s_.keys; key += key_block) add_slopes(i * query_block, key);
      }
    }
  }

  void add_slopes(Index query, Index key) {
    const Block block = slopes(query, key, T(1), false);
    for (Index r = block.rows.begin; r < block.rows.end; ++r) {
      T* const out = this->at(s_.grad_mask, query + r) + key * s_.grad_mask_column;
      V sum(T(0));
      for (Index c = block.columns.begin; c < block.columns.end; c += w) {
        const Index lanes = block.columns.end - c;
        const V slope = V::load(slopes_ + r * stride_ + c, lanes);
        if (s_.grad_mask_column == 0)
          sum = sum + slope;
        else
          (V::load(out + c, lanes) + slope).store(out + c, lanes);
      }
      if (s_.grad_mask_column == 0) *out += across(sum, Add());
    }
  }

  const bool stream_ = short_ && !s_.bfloat16 &&
                       this->streams(s_.grad_query, s_.queries, s_.size) &&
                       this->streams(s_.grad_key, s_.keys, s_.size) &&
                       this->streams(s_.grad_value, s_.keys, s_.value_size);
  // Of rows of weights and slopes: no longer than short keys need.
  const Index stride_ = smaller(key_block, ceil_div(s_.keys, w) * w);
  Index packed_ = -1;                      // the packed head
  T *keys_by_column_, *values_by_column_;  // [panels(Lk)][E or D][panel_width]
  const T *keys_, *queries_, *grads_;
  T *packed_keys_, *packed_queries_, *packed_grads_;  // [panels(E or D)][Lk or Lq][panel_width]
  T* means_;                                          // [Lq]
  T *weights_, *slopes_;                              // [query_block][stride_], twice
  Lanes* kept_;                                       // [rows][words], of a tile's dropout
};

}  // namespace fastrnn::FASTRNN_ISA
