// Softmax and losses of rows whose logits come block by block of classes; lanes are rows.
#pragma once

#include "cross_entropy_operands_cpu.h"
#include "softmax_cpu.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
class Softmax {
  using C = Value<T>;
  using V = Vec<C>;
  static constexpr Index w = V::width, lanes = Chunk<T>::lanes;
  static constexpr int NR = Chunk<T>::NR;

 public:
  Softmax(const CrossEntropy& args, const Cut<T>& cut, Arena& arena) : s_(args), cut_(cut) {
    highest_ = arena.take<C>(cut.blocks * cut.stride);
    sums_ = arena.take<C>(cut.blocks * cut.stride);
    shifts_ = arena.take<C>(cut.blocks * cut.stride);
    target_logits_ = arena.take<C>(cut.stride);
    if (s_.grad_hidden) row_scales_ = arena.take<C>(cut.stride);
  }

  // A block's part of the bias, zeros where there is none.
  const C* bias(Index b) const {
    static constexpr C zeros[Cut<T>::most_block] = {};
    return s_.bias ? static_cast<const C*>(s_.bias) + b * cut_.block : zeros;
  }

  // Logits x [classes][lanes] of a panel of rows and a block, without bias, become
  // exp(x - highest); the targets' logits and the sums over the block are kept. With `level`, 0 is
  // taken for the highest, in one pass. Returns whether the logits are near enough to 0 for that.
  bool block(const Chunk<T>& chunk, Index panel, Index b, bool level, C* x) const {
    const Index classes = cut_.block_classes(b), row0 = panel * lanes;
    for (Index row = row0; row < smaller(chunk.rows, row0 + lanes); ++row) {
      const Index target = s_.target[chunk.row0 + row] - b * cut_.block;
      if (target >= 0 && target < classes)
        target_logits_[row] = x[target * lanes + row - row0] + bias(b)[target];
    }
    const Index place = b * cut_.stride + row0;
    if (level) return level_statistics(chunk.used(panel), b, x, place);
    statistics(chunk.used(panel), b, x, place);
    return true;
  }

  // The losses of the vector of rows at `row`; the blocks' sums become the factors that make their
  // exponentials the softmax's gradient.
  void losses(const Chunk<T>& chunk, Index row) const {
    const C scale = C(s_.scale), smoothing = C(s_.label_smoothing);
    V most(-C(__builtin_inf())), total(C(0)), shifted(C(0));
    for (Index b = 0; b < cut_.blocks; ++b)
      most = Larger()(most, V::load(highest_ + b * cut_.stride + row));
    for (Index b = 0; b < cut_.blocks; ++b) {
      const Index place = b * cut_.stride + row;
      const V down = V::load(highest_ + place) - most, sum = V::load(sums_ + place);
      total = total + sum * exp_negative(down);
      if (smoothing > 0)
        shifted = shifted + (V::load(shifts_ + place) + down * V(C(cut_.block_classes(b))));
    }
    alignas(64) C scales[w];
    for (Index r = 0; r < w; ++r) {
      scales[r] = C(0);
      if (row + r >= chunk.rows) continue;
      C& loss = static_cast<C*>(s_.losses)[chunk.row0 + row + r];
      loss = 0 * scale;  // NaN where no row counts, as a mean of none is in torch
      if (s_.target[chunk.row0 + row + r] == s_.ignore_index) continue;
      scales[r] = scale;
      const C sum = C(__builtin_log(double(total.v[r])));
      loss = scale * (sum - (1 - smoothing) * (target_logits_[row + r] - most.v[r]));
      // Not 0 * shifted: that may be infinite.
      if (smoothing > 0) loss -= scale * smoothing * (shifted.v[r] / C(s_.classes));
    }
    if (!s_.grad_hidden) return;
    const V row_scale = V::load(scales);
    row_scale.store(row_scales_ + row);
    for (Index b = 0; b < cut_.blocks; ++b) {
      const Index place = b * cut_.stride + row;
      (exp_negative(V::load(highest_ + place) - most) * row_scale / total).store(sums_ + place);
    }
  }

  // A panel's exponentials x become the loss's gradient, scale (softmax - (1 - smoothing) onehot -
  // smoothing / V), in `grad` [classes][stride] too unless it is to be rounded.
  void gradient(const Chunk<T>& chunk, Index panel, Index b, C* x, Operand<T>* grad) const {
    const Index classes = cut_.block_classes(b), row0 = panel * lanes;
    scale(chunk.used(panel), x, classes, b * cut_.stride + row0, row0, grad);
    for (Index row = row0; row < smaller(chunk.rows, row0 + lanes); ++row) {
      const Index target = s_.target[chunk.row0 + row] - b * cut_.block;
      if (target < 0 || target >= classes) continue;
      C& here = x[target * lanes + row - row0];
      here -= (1 - C(s_.label_smoothing)) * row_scales_[row];
      if constexpr (!rounds<T>) grad[target * cut_.stride + row - row0] = here;
    }
  }

 private:
  template <int Used = NR>
  void scale(int used, C* x, Index classes, Index place, Index row, Operand<T>* grad) const {
    if (used < Used) {
      if constexpr (Used > 1) scale<Used - 1>(used, x, classes, place, row, grad);
      return;
    }
    V factor[Used], of_row[Used], flat[Used];
    for (int v = 0; v < Used; ++v) {
      factor[v] = V::load(sums_ + place + v * w);
      of_row[v] = V::load(row_scales_ + row + v * w);
      flat[v] = of_row[v] * V(C(s_.label_smoothing) / C(s_.classes));
    }
    for (Index c = 0; c < classes; ++c)
#pragma GCC unroll 4
      for (int v = 0; v < Used; ++v) {
        const V y = where_positive(of_row[v], V::load(x + c * lanes + v * w) * factor[v]) - flat[v];
        y.store(x + c * lanes + v * w);
        if constexpr (!rounds<T>) y.store(grad + c * cut_.stride + v * w);
      }
  }

  // Of one panel of rows; `place` is theirs in what is kept per block and row.
  template <int Used = NR>
  bool level_statistics(int used, Index b, C* x, Index place) const {
    if constexpr (Used > 1)
      if (used < Used) return level_statistics<Used - 1>(used, b, x, place);
    const Index classes = cut_.block_classes(b);
    V high(-C(__builtin_inf())), sum[Used], shifted[Used];
    for (int v = 0; v < Used; ++v) sum[v] = V(C(0)), shifted[v] = V(C(0));
    if (s_.label_smoothing > 0)
      for (Index c = 0; c < classes; ++c)
        for (int v = 0; v < Used; ++v)
          shifted[v] = shifted[v] + (V::load(x + c * lanes + v * w) + V(bias(b)[c]));
    for (Index c = 0; c < classes; ++c) {
      const V shift(bias(b)[c]);
#pragma GCC unroll 4
      for (int v = 0; v < Used; ++v) {
        const V here = V::load(x + c * lanes + v * w) + shift, e = exp_or_zero(here);
        high = Larger()(high, here);
        e.store(x + c * lanes + v * w);
        sum[v] = sum[v] + e;
      }
    }
    V low(C(0));  // or NaN
    for (int v = 0; v < Used; ++v) {
      V(C(0)).store(highest_ + place + v * w);
      sum[v].store(sums_ + place + v * w);
      shifted[v].store(shifts_ + place + v * w);
      low.v = sum[v].v >= V(C(level_least_sum)).v ? low.v : V(C(1)).v;
    }
    return across(high, Larger()) <= level_most && across(low, Larger()) == 0;
  }

  template <int Used = NR>
  void statistics(int used, Index b, C* x, Index place) const {
    if (used < Used) {
      if constexpr (Used > 1) statistics<Used - 1>(used, b, x, place);
      return;
    }
    const Index classes = cut_.block_classes(b);
    V high[Used], sum[Used], shifted[Used];
    for (int v = 0; v < Used; ++v)
      high[v] = V(-C(__builtin_inf())), sum[v] = V(C(0)), shifted[v] = V(C(0));
    for (Index c = 0; c < classes; ++c) {
      const V shift(bias(b)[c]);
#pragma GCC unroll 4
      for (int v = 0; v < Used; ++v) {
        const V here = V::load(x + c * lanes + v * w) + shift;
        here.store(x + c * lanes + v * w);
        high[v] = Larger()(high[v], here);
      }
    }
    for (int v = 0; v < Used; ++v) {
      high[v].store(highest_ + place + v * w);
      // -inf - -inf would be NaN, where there are others than this block's.
      const V none(-C(__builtin_inf()));
      high[v].v = high[v].v == none.v ? typename V::Register{} : high[v].v;
    }
    if (s_.label_smoothing > 0)
      for (Index c = 0; c < classes; ++c)
        for (int v = 0; v < Used; ++v)
          shifted[v] = shifted[v] + (V::load(x + c * lanes + v * w) - high[v]);
    for (Index c = 0; c < classes; ++c)
#pragma GCC unroll 4
      for (int v = 0; v < Used; ++v) {
        const V e = exp_negative(V::load(x + c * lanes + v * w) - high[v]);
        e.store(x + c * lanes + v * w);
        sum[v] = sum[v] + e;
      }
    for (int v = 0; v < Used; ++v) {
      sum[v].store(sums_ + place + v * w);
      shifted[v].store(shifts_ + place + v * w);
    }
  }

  const CrossEntropy& s_;
  const Cut<T>& cut_;
  C *highest_, *sums_, *shifts_;  // [blocks][stride]
  C *target_logits_, *row_scales_ = nullptr;
};

}  // namespace fastrnn::FASTRNN_ISA
