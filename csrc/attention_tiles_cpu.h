// What both passes of attention share: a head's operands packed, and products of tiles.
#pragma once

#include "attention_few_cpu.h"
#include "attention_head_cpu.h"
#include "few_products_cpu.h"

namespace fastrnn::FASTRNN_ISA {

template <class T, class Arguments>
class AttentionTiles : protected AttentionHead<T> {
 protected:
  using Head = AttentionHead<T>;
  using Head::a_, Head::at, Head::panels;
  using Head::NV, Head::w, Head::panel_width, Head::most_rows, Head::key_block;
  using typename Head::Needed, typename Head::V;

  AttentionTiles(const Arguments& arguments, Index query_block, char* workspace, int threads)
      : Head(arguments, query_block),
        given_(arguments),
        s_(arguments),
        workspace_(workspace),
        threads_(threads),
        tail_(a_.keys % w <= few<T> ? a_.keys % w : 0) {}

  Index bytes() const { return bytes_ * threads_; }

  void take(Arena& arena) {
    Head::take(arena);
    if (!s_.bfloat16) return;
    s_.query = copy_of_head<T>(arena, s_.queries, s_.size);
    s_.key = copy_of_head<T>(arena, s_.keys, s_.size);
    s_.value = copy_of_head<T>(arena, s_.keys, s_.value_size);
    s_.output = copy_of_head<T>(arena, s_.queries, s_.value_size);
  }

  // Returns whether the head's mask is another than the one before.
  bool open(Index head) {
    const bool another = Head::open(head);
    this->ahead_ = {};
    read(given_.query, s_.queries, s_.size, s_.query);
    read(given_.key, s_.keys, s_.size, s_.key);
    read(given_.value, s_.keys, s_.value_size, s_.value);
    return another;
  }
  // The open head of a tensor, rows of `width`, for the loops; the next one's is asked for.
  void read(const Heads& tensor, Index rows, Index width, const Heads& copy) {
    Head::widen(tensor, rows, copy);
    if (Head::short_) this->coming(tensor, rows, width);
  }

  static constexpr Index padded(Index columns) { return panels(columns) * panel_width; }
  static constexpr int used(Index columns) { return int(smaller(NV, ceil_div(columns, w))); }

  // A head's keys or values [Lk, k] to out [panels(Lk)][k][panel_width]: row i becomes column i.
  // The last few stay as they are, and all where queries are few.
  void pack_columns(const Heads& tensor, Index k, T* out) const {
    if (few_) return;
    const Index n = a_.keys - tail_;
    for (Index v = 0; v < ceil_div(n, w); ++v)
      pack_columns_transposed(at(tensor) + v * w * tensor.row, tensor.row, n - v * w, k,
                              out + (v / NV) * k * panel_width + v % NV * w, panel_width);
  }

  // out [rows, ..ld] of a block's keys = a tile's rows of one tensor by the rows of another, whose
  // columns are packed.
  void products(const Heads& tile, Index query, Index rows, const Heads& of_keys, const T* packed,
                Index k, Index key, const Needed& needed, T* out, Index ld) const {
    const Index begin = needed.begin * panel_width;
    for (Index r = 0; few_ && r < rows; ++r)
      row_products(at(tile, query + r), at(of_keys, key + begin), of_keys.row, needed.keys - begin,
                   k, out + r * ld + begin);
    if (few_) return;
    const Index last = smaller(needed.keys, a_.keys - tail_ - key);
    for (Index c = begin; c < last; c += panel_width)
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

  // What `product` computes of a head's keys or values from one of them on, where queries are few.
  void few_sums(Index rows, const T* a, Index lda, const Heads& of_keys, Index key, Index depth,
                Index width, T* out, Index ld, bool add) const {
    for (Index r = 0; r < rows; ++r)
      weighted_sum(a + r * lda, at(of_keys, key), of_keys.row, depth, width, out + r * ld, add);
  }

  static void zero(T* out, Index ld, Index rows, Index width) {
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < width; c += w) V(T(0)).store(out + r * ld + c, width - c);
  }

  const Arguments& given_;
  Arguments s_;  // with copies of the open head in place of tensors of bfloat16
  char* const workspace_;
  const int threads_;
  Index bytes_;                                 // of the workspace, for each thread
  const bool few_ = a_.queries <= few_queries;  // packing keys and values would be most of the work

 private:
  const Index tail_;  // keys of the last vector that are few
};

}  // namespace fastrnn::FASTRNN_ISA
