// Attention's backward pass. The weights are made again from the scores and their logsumexp, block
// by block; nothing of them is kept between the passes.
#pragma once

#include "attention_tiles_cpu.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
class AttentionBackwardLoop : AttentionTiles<T> {
  using Tiles = AttentionTiles<T>;
  using Tiles::block_panels, Tiles::panels, Tiles::padded;
  using Tiles::NV, Tiles::w, Tiles::panel_width, Tiles::most_rows, Tiles::key_block, Tiles::used;
  using typename Tiles::Needed, typename Tiles::V;
  static constexpr Index query_block = 8 * most_rows;

 public:
  AttentionBackwardLoop(const AttentionBackward& arguments, char* workspace, int threads)
      : Tiles(arguments), s_(arguments), workspace_(workspace), threads_(threads) {
    Arena arena(nullptr);
    take(arena);
    bytes_ = arena.bytes();
  }

  Index bytes() const { return bytes_ * threads_; }

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
    if (s_.grad_mask.data) mask_gradients(team);
  }

 private:
  struct Blocks {
    Index begin, end;
  };

  void take(Arena& arena) {
    const Index E = s_.size, D = s_.value_size;
    keys_by_column_ = arena.take<T>(padded(s_.keys) * E);
    values_by_column_ = arena.take<T>(padded(s_.keys) * D);
    keys_ = arena.take<T>(padded(E) * s_.keys);
    queries_ = arena.take<T>(padded(E) * s_.queries);
    grads_ = arena.take<T>(padded(D) * s_.queries);
    // One panel is also the matrix row by row.
    query_rows_ = panels(E) == 1 ? queries_ : arena.take<T>(E * s_.queries);
    grad_rows_ = panels(D) == 1 ? grads_ : arena.take<T>(D * s_.queries);
    means_ = arena.take<T>(s_.queries);
    grad_queries_ = arena.take<T>(padded(E) * s_.queries);
    grad_keys_ = arena.take<T>(padded(E) * key_block);
    grad_values_ = arena.take<T>(padded(D) * key_block);
    weights_ = arena.take<T>(query_block * key_block);
    slopes_ = arena.take<T>(query_block * key_block);
    kept_ = arena.take<T>(key_block);
  }

  // Packs a head's operands, unless they are; and rowsum(grad_output * output), the mean slope.
  void pack(Index head) {
    if (head == packed_) return;
    packed_ = head;
    this->open(head);
    const Index E = s_.size, D = s_.value_size, Lq = s_.queries, Lk = s_.keys;
    const T *query = this->at(s_.query), *key = this->at(s_.key);
    const T *value = this->at(s_.value), *out = this->at(s_.output);
    const T* grad = this->at(s_.grad_output);
    Tiles::pack_columns(key, s_.key.row, Lk, E, keys_by_column_);
    Tiles::pack_columns(value, s_.value.row, Lk, D, values_by_column_);
    Tiles::pack_panels(key, s_.key.row, Lk, E, T(1), keys_);
    Tiles::pack_panels(query, s_.query.row, Lq, E, T(s_.scale), queries_);
    Tiles::pack_panels(grad, s_.grad_output.row, Lq, D, T(1), grads_);
    if (panels(E) > 1) Tiles::pack_rows(query, s_.query.row, Lq, E, T(s_.scale), query_rows_);
    if (panels(D) > 1) Tiles::pack_rows(grad, s_.grad_output.row, Lq, D, T(1), grad_rows_);
    for (Index i = 0; i < Lq; ++i) {
      if (short_) {
        Tiles::prefetch(this->next(s_.grad_output, i), D);
        Tiles::prefetch(this->next(s_.output, i), D);
        Tiles::template prefetch<1>(this->at(s_.grad_query, i), E);
        Tiles::template prefetch<1>(this->at(s_.grad_key, i), E);
        Tiles::template prefetch<1>(this->at(s_.grad_value, i), D);
      }
      V sum(T(0));
      for (Index c = 0; c < D; c += w)
        sum = sum + V::load(grad + i * s_.grad_output.row + c, D - c) *
                        V::load(out + i * s_.output.row + c, D - c);
      means_[i] = across(sum, Add());
    }
  }

  // The gradients of the open head that these blocks make: of the blocks' queries (which then need
  // all blocks of keys), of their keys and values (all blocks of queries), or both.
  void gradients(Blocks query_blocks, Blocks key_blocks, bool of_queries, bool of_keys) {
    const Index E = s_.size, D = s_.value_size, begin = query_blocks.begin * query_block;
    const Index end = smaller(s_.queries, query_blocks.end * query_block);
    if (of_queries) Tiles::zero(grad_queries_ + begin * panel_width, s_.queries, end - begin, E);
    for (Index key = key_blocks.begin * key_block;
         key < smaller(s_.keys, key_blocks.end * key_block); key += key_block) {
      const Index count = smaller(key_block, s_.keys - key);
      if (of_keys) {
        Tiles::zero(grad_keys_, key_block, count, E);
        Tiles::zero(grad_values_, key_block, count, D);
      }
      for (Index query = begin; query < end; query += query_block) {
        const Block block = slopes(query, key, of_queries);
        if (!of_keys || block.none()) continue;
        const Index first = query + block.rows.begin;
        transposed(block, weights_, grads_, first, D, grad_values_);
        transposed(block, slopes_, queries_, first, E, grad_keys_);
      }
      if (!of_keys) continue;
      Tiles::unpack(grad_keys_, key_block, count, E, T(1), this->at(s_.grad_key, key),
                    s_.grad_key.row);
      Tiles::unpack(grad_values_, key_block, count, D, T(1), this->at(s_.grad_value, key),
                    s_.grad_value.row);
    }
    if (of_queries)
      Tiles::unpack(grad_queries_ + begin * panel_width, s_.queries, end - begin, E, T(s_.scale),
                    this->at(s_.grad_query, begin), s_.grad_query.row);
  }

  // The rows and columns of a block outside which its weights are 0.
  struct Block {
    Blocks rows, columns;
    bool none() const { return rows.begin >= rows.end; }
  };

  // Weights and slopes, dS, of a block [query_block, key_block]; both are zeros in the rest of what
  // is returned. Adds the slopes' share to the gradient of the queries if that is wanted.
  Block slopes(Index query, Index key, bool of_queries) {
    const Index count = smaller(query_block, s_.queries - query);
    const Index keys = smaller(key_block, s_.keys - key);
    const RowBlocks<NV> tiles(count);
    Block block{{count, 0}, {key_block, 0}};
    for (Index t = 0, first = 0, rows; t < tiles.count; ++t, first += rows) {
      rows = tiles.start(t + 1) - first;
      const Needed needed = Tiles::needed(query + first, rows, key);
      const Index begin = needed.begin * panel_width;
      for (Index r = first; r < first + rows; ++r)
        for (T* row : {weights_ + r * key_block, slopes_ + r * key_block}) {
          for (Index c = 0; c < begin; c += w) V(T(0)).store(row + c);
          for (Index c = ceil_div(needed.keys, w) * w; c < keys; c += w) V(T(0)).store(row + c);
        }
      if (needed.none()) continue;
      block.rows = {smaller(block.rows.begin, first), first + rows};
      block.columns.begin = smaller(block.columns.begin, begin);
      block.columns.end = needed.keys > block.columns.end ? needed.keys : block.columns.end;
      tile_slopes(query, first, rows, key, needed);
      if (!of_queries) continue;
      for (Index p = 0; p < panels(s_.size); ++p)
        tile_product<T, NV>(used(s_.size - p * panel_width), rows,
                            slopes_ + first * key_block + begin, key_block, 1,
                            keys_ + (p * s_.keys + key + begin) * panel_width, needed.keys - begin,
                            grad_queries_ + (p * s_.queries + query + first) * panel_width);
    }
    return block;
  }

  // One tile: rows from `first` on of the block's weights and slopes.
  void tile_slopes(Index query, Index first, Index rows, Index key, const Needed& needed) {
    const Index E = s_.size, D = s_.value_size;
    const Index E_row = panels(E) == 1 ? panel_width : E, D_row = panels(D) == 1 ? panel_width : D;
    T *weights = weights_ + first * key_block, *slopes = slopes_ + first * key_block;
    query += first;
    for (Index p = needed.begin; p < needed.end; ++p) {
      const Index column = p * panel_width;
      const int vectors = used(needed.keys - column);
      tile_product<T, NV>(vectors, rows, query_rows_ + query * E_row, E_row, 1,
                          keys_by_column_ + (key + column) * E, E, weights + column, false,
                          key_block);
      tile_product<T, NV>(vectors, rows, grad_rows_ + query * D_row, D_row, 1,
                          values_by_column_ + (key + column) * D, D, slopes + column, false,
                          key_block);
      this->mask_scores(query, rows, key + column, vectors, weights + column, key_block);
    }
    const T* logs = static_cast<const T*>(s_.logsumexp) + packed_ * s_.queries + query;
    const T* means = means_ + query;
    T* const kept = kept_;
    const bool drops = s_.dropout > 0;
    const Index begin = needed.begin * panel_width, end = needed.keys;
    for (Index r = 0; r < rows; ++r, weights += key_block, slopes += key_block) {
      if (short_) {
        Tiles::prefetch(this->next(s_.query, query + r), E);
        Tiles::prefetch(this->next(s_.key, query + r), E);
        Tiles::prefetch(this->next(s_.value, query + r), D);
      }
      if (drops) {
        this->kept(query + r, key + begin, end - begin, kept);
        Tiles::multiply(slopes + begin, kept, end - begin);
      }
      const V log(logs[r]), mean(means[r]);
      for (Index c = begin; c < end; c += w) {
        const V weight = exp_or_zero(V::load(weights + c) - log);
        weight.store(weights + c);
        (weight * (V::load(slopes + c) - mean)).store(slopes + c);
      }
      if (drops) Tiles::multiply(weights + begin, kept, end - begin);
    }
  }

  // out [panels(width)][key_block][panel_width] += a^T b: `a` a block's weights or slopes, b's
  // panels from row `first` on.
  void transposed(const Block& block, const T* a, const T* b, Index first, Index width, T* out) {
    const RowBlocks<NV> tiles(block.columns.end - block.columns.begin);
    const Index depth = block.rows.end - block.rows.begin;
    a += block.rows.begin * key_block + block.columns.begin;
    out += block.columns.begin * panel_width;
    for (Index t = 0, column = 0, columns; t < tiles.count; ++t, column += columns) {
      columns = tiles.start(t + 1) - column;
      for (Index p = 0; p < panels(width); ++p)
        tile_product<T, NV>(used(width - p * panel_width), columns, a + column, 1, key_block,
                            b + (p * s_.queries + first) * panel_width, depth,
                            out + (p * key_block + column) * panel_width);
    }
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
    const Block block = slopes(query, key, false);
    for (Index r = block.rows.begin; r < block.rows.end; ++r) {
      T* const out = this->at(s_.grad_mask, query + r) + key * s_.grad_mask_column;
      V sum(T(0));
      for (Index c = block.columns.begin; c < block.columns.end; c += w) {
        const Index lanes = block.columns.end - c;
        const V slope = V::load(slopes_ + r * key_block + c, lanes);
        if (s_.grad_mask_column == 0)
          sum = sum + slope;
        else
          (V::load(out + c, lanes) + slope).store(out + c, lanes);
      }
      if (s_.grad_mask_column == 0) *out += across(sum, Add());
    }
  }

  const AttentionBackward& s_;
  char* const workspace_;
  const int threads_;
  // Whether a head is one block. Then its rows are asked for while the one before is worked on, a
  // few at a time: a quarter of the time of such heads went into waiting for memory.
  const bool short_ = s_.queries <= query_block && s_.keys <= key_block;
  Index bytes_, packed_ = -1;              // the packed head
  T *keys_by_column_, *values_by_column_;  // [panels(Lk)][E or D][panel_width]
  T *keys_, *queries_, *grads_;            // [panels(E or D)][Lk or Lq][panel_width]
  T *query_rows_, *grad_rows_;             // [Lq, E or D], or padded to the one panel's width
  T* means_;                               // [Lq]
  T* grad_queries_;                        // [panels(E)][Lq][panel_width]
  T *grad_keys_, *grad_values_;            // [panels(E or D)][key_block][panel_width]
  T *weights_, *slopes_, *kept_;           // [query_block][key_block], twice; [key_block]
};

}  // namespace fastrnn::FASTRNN_ISA
