// How `linear_cross_entropy` is cut into chunks, blocks and panels, and its hidden states and
// weights as the products read them.
//
// Operands of the products are rounded to T: Bf16 from tensors of float.
#pragma once

#include "gemm_cpu.h"
#include "kernels_cpu.h"
#include "workspace.h"

namespace fastrnn::FASTRNN_ISA {

// Some rows of all, whose logits are held at once.
template <class T>
struct Chunk {
  static constexpr Index w = width<T>;
  static constexpr int NR = 3;  // vectors of a panel of rows
  static constexpr Index lanes = NR * w;

  int used(Index panel) const {  // vectors
    return int(smaller(NR, ceil_div(rows - panel * lanes, w)));
  }
  Index panels() const { return ceil_div(rows, lanes); }
  Index vectors() const { return ceil_div(rows, w); }

  Index row0, rows;
};

template <class T>
struct Cut {
  static constexpr Index most_block = 96;

  explicit Cut(const CrossEntropy& args)
      : block(block_of(args.classes)),
        blocks(ceil_div(args.classes, block)),
        rows_(args.rows),
        classes_(args.classes) {
    constexpr Index logit_bytes = Index(6) << 20,  // of a chunk: within the last cache
        hidden_bytes = Index(1) << 20,             // of its hidden states: the second one's
        w = width<T>, vector_bytes = w * Index(sizeof(Value<T>));
    const Index vectors = ceil_div(rows_, w);
    const Index fits = smaller(logit_bytes / (classes_ * vector_bytes),
                               hidden_bytes / (larger(args.features, 1) * vector_bytes));
    rows = ceil_div(vectors, ceil_div(vectors, larger(Chunk<T>::NR, fits))) * w;
    panels = ceil_div(rows, Chunk<T>::lanes);
    stride = panels * Chunk<T>::lanes;
  }

  Chunk<T> chunk(Index row0) const { return {row0, smaller(rows, rows_ - row0)}; }
  Index block_classes(Index b) const { return smaller(block, classes_ - b * block); }

  // Classes whose exponentials are taken against one largest logit; and how many such there are.
  const Index block, blocks;
  Index rows, panels, stride;  // of a chunk; its panels; and rows with the last panel full

 private:
  // Few classes make blocks enough for several threads; their number is not asked: same bits.
  static Index block_of(Index classes) {
    constexpr Index shares = 16, step = 8;  // the highest tile's rows
    return smaller(most_block, ceil_div(ceil_div(classes, shares), step) * step);
  }

  const Index rows_, classes_;
};

template <class T>
class CrossEntropyOperands {
  using C = Value<T>;
  using O = Operand<T>;
  static constexpr Index w = width<T>, lanes = Chunk<T>::lanes;
  static constexpr int NR = Chunk<T>::NR;

 public:
  static constexpr bool grouped = depth<T> > 1;
  static constexpr int NK = 2;  // vectors of a panel of features

  CrossEntropyOperands(const CrossEntropy& args, const Cut<T>& cut, Arena& arena) : s_(args) {
    const Index K = s_.features, classes = s_.classes;
    hidden_lanes_ = arena.take<O>(padded<T>(K) * cut.stride);
    if (s_.grad_hidden) hidden_panels_ = arena.take<O>(panel_size<T, NK>(K, cut.rows));
    if constexpr (rounds<T>) {
      rounded_hidden_ = arena.take<T>(cut.rows * K);
      rounded_weight_ = arena.take<O>(classes * K);
      if (grouped && s_.grad_hidden)
        weight_groups_ = arena.take<O>(padded<T>(classes) * group_stride());
    }
  }

  // A class's weights [K].
  const O* weight(Index row) const {
    if constexpr (rounds<T>)
      return rounded_weight_ + row * s_.features;
    else
      return tensor_row(s_.weight, row);
  }

  // The weights of the group of classes from c on, each feature's together.
  const O* weight_group(Index c) const {
    if constexpr (grouped)
      return weight_groups_ + c * group_stride();
    else
      return weight(c);
  }
  Index group_stride() const { return grouped ? ceil_div(s_.features, w) * w : s_.features; }

  // A panel of rows from feature k on, lanes along rows; one of features, lanes along these.
  const O* hidden_rows(Index panel, Index k) const {
    return hidden_lanes_ + (panel * padded<T>(s_.features) + k) * lanes;
  }
  const O* hidden_features(Index panel, Index rows) const {
    return hidden_panels_ + panel * NK * w * padded<T>(rows);
  }

  void round_weight(const Team& team) const {
    const Index K = s_.features, count = s_.classes * K, end = team.end(count);
    for (Index i = team.begin(count); i < end; i += w)
      store_operand<T>(Vec<C>::load(tensor_row(s_.weight, 0) + i, end - i), rounded_weight_ + i,
                       end - i);
    if (!grouped || !s_.grad_hidden) return;
    team.wait();
    const Index groups = ceil_div(s_.classes, depth<T>);
    for (Index group = team.begin(groups); group < team.end(groups); ++group)
      for (Index k = 0; k < K; k += w) {
        const Index c = group * depth<T>;
        const auto at = [&](Index i) { return weight(c + i) + k; };
        const auto columns = zip_rows<T>(at, s_.classes - c, K - k);
        __builtin_memcpy(weight_groups_ + c * group_stride() + k * depth<T>, &columns.v,
                         sizeof columns.v);
      }
  }

  // A chunk's hidden states in both orders.
  void pack_hidden(const Team& team, const Chunk<T>& chunk) const {
    const Index K = s_.features, vectors = chunk.panels() * NR;
    if constexpr (rounds<T>) {
      copy(team, chunk.rows * K, tensor_row(s_.hidden, chunk.row0), rounded_hidden_);
      team.wait();
    }
    for (Index v = team.begin(vectors); v < team.end(vectors); ++v)
      pack_columns_transposed(hidden(chunk, v * w), K, chunk.rows - v * w, K,
                              hidden_lanes_ + v / NR * padded<T>(K) * lanes + v % NR * w * depth<T>,
                              lanes);
    if (s_.grad_hidden)
      pack_rows<T, NK>(
          team, K, chunk.rows, [&](Index row) { return hidden(chunk, row); }, hidden_panels_);
  }

 private:
  const C* tensor_row(const void* base, Index row) const {
    return static_cast<const C*>(base) + row * s_.features;
  }

  const T* hidden(const Chunk<T>& chunk, Index row) const {
    if constexpr (rounds<T>)
      return rounded_hidden_ + row * s_.features;
    else
      return tensor_row(s_.hidden, chunk.row0 + row);
  }

  const CrossEntropy& s_;
  O *hidden_lanes_, *hidden_panels_ = nullptr;
  T* rounded_hidden_ = nullptr;
  O *rounded_weight_ = nullptr, *weight_groups_ = nullptr;
};

}  // namespace fastrnn::FASTRNN_ISA
