// The backward pass of one layer: per step, backwards, one product with W_hh (two for a cell with
// an operand) whose finish is the gates' gradient; then one product each for the input's and the
// weights' gradients over all rows.
#pragma once

#include "activations_cpu.h"
#include "along_k_cpu.h"
#include "cells.h"
#include "gate_rows_cpu.h"
#include "gate_weights_cpu.h"
#include "gemm_cpu.h"
#include "kernels_cpu.h"
#include "packed_weights_cpu.h"
#include "share_cpu.h"
#include "workspace.h"
#include "zoneout_cpu.h"

namespace fastrnn::FASTRNN_ISA {

template <class T, class Cell>
class BackwardLoop {
  using C = Value<T>;
  using O = Operand<T>;
  using V = Vec<C>;
  static constexpr int G = Cell::gates, S = Cell::states, R = Cell::reserve;
  static constexpr int first = Cell::operand_gates;
  static constexpr int NV = 2;
  static constexpr Index w = V::width;

 public:
  BackwardLoop(const Backward& args, char* workspace, int threads)
      : s_(args),
        packs_(args.rows > most_along_rows<T>),
        H_(args.hidden_size),
        GH_(G * H_),
        back_(first ? first * H_ : GH_),
        reserve_stride_((args.zoneout.on ? R + S : R) * H_),
        arena_(workspace) {
    const Index N = s_.rows, I = s_.input_size;
    carry_ = arena_.template take<C>(S * s_.batch * H_);
    if (s_.resets) zeros_ = arena_.template take<T>(s_.batch * H_);
    if (!packs_) sums_ = arena_.template take<C>(N * ceil_div(larger(H_, I), w) * w);
    packed_hh_ = arena_.template take<O>(panel_size<T, NV>(H_, back_));
    if (first) packed_last_ = arena_.template take<O>(panel_size<T, NV>(H_, GH_ - back_));
    if (first) operand_ = arena_.template take<T>(N * H_);
    grad_x_ = s_.weight_ih ? arena_.template take<T>(N * GH_) : static_cast<T*>(s_.grad_input);
    grad_h_ = shared_gradients<Cell> ? grad_x_ : arena_.template take<T>(N * GH_);
    if (s_.weight_ih && s_.grad_input)
      packed_ih_ = arena_.template take<O>(panel_size<T, NV>(I, GH_));
    if (s_.grad_weight_hh) {
      before_ = arena_.template take<const T*>(N);
      weights_ = GateWeights<T, Cell>(s_, arena_, threads);
    }
  }

  Index bytes() const { return arena_.bytes(); }

  void run(const Team& team) {
    pack(team);
    team.wait();
    const Share share(s_, team, GH_ * H_ * Index(sizeof(O)));
    Index handed = s_.rows;  // of the rows whose gradients have been handed on, the first
    for (Index step = s_.steps - 1; step >= 0; --step) {
      if (s_.source) s_.source->wait_for(s_.steps - step);
      const Segment* begin = s_.segments + s_.step_begin[step];
      const Segment* end = s_.segments + s_.step_begin[step + 1];
      for (const Segment* segment = begin; segment < end; ++segment)
        step_(share.team, share.of(*segment));
      share.team.wait();
      if constexpr (first > 0) {
        for (const Segment* segment = begin; segment < end; ++segment)
          operand_step(share.team, share.of(*segment));
        share.team.wait();
      }
      if (s_.progress && (step == 0 || handed - begin->row >= handed_rows)) {
        input_gradient(share.team, begin->row, handed);
        handed = begin->row;
        share.team.wait();
        if (share.team.rank == 0) s_.progress->reach(s_.steps - step);
      }
    }
    if (s_.grad_state) finish_state(share);
    team.wait();
    if (packed_ih_ && !s_.progress) input_gradient(team, 0, s_.rows);
    if (s_.grad_weight_hh) weights_.run(team, {grad_x_, grad_h_}, before_, operand_, H_);
  }

 private:
  const T* at(const void* base, Index row) const { return static_cast<const T*>(base) + row * H_; }
  const T* reserve(Index row) const {
    return static_cast<const T*>(s_.reserve) + row * reserve_stride_;
  }
  const T* previous(const Segment& segment, int i) const {
    if (segment.reset) return zeros_;
    if (segment.prev < 0) return at(s_.state, i * s_.batch + segment.sequence);
    return i == 0 ? at(s_.output, segment.prev) : at(s_.cells, (i - 1) * s_.rows + segment.prev);
  }
  const T* weight_hh(Index row) const { return static_cast<const T*>(s_.weight_hh) + row * H_; }
  const T* weight_ih() const { return static_cast<const T*>(s_.weight_ih); }
  C* carry(int i, Index sequence) const { return carry_ + (i * s_.batch + sequence) * H_; }

  void pack(const Team& team) const {
    const auto pack_weight = [&](const T* weight, Index columns, Index rows, O* packed) {
      if (!packs_) return;
      pack_rows<T, NV>(
          team, columns, rows, [=](Index row) { return weight + row * columns; }, packed);
    };
    // A single step sends nothing back but to the initial state.
    if (s_.grad_state || s_.steps > 1) pack_weight(weight_hh(0), H_, back_, packed_hh_);
    if (first) pack_weight(weight_hh(back_), H_, GH_ - back_, packed_last_);
    if (packed_ih_) pack_weight(weight_ih(), s_.input_size, GH_, packed_ih_);
    if (zeros_) clear(team, s_.batch * H_, zeros_);
    if (s_.grad_state_n)
      copy(team, S * s_.batch * H_, static_cast<const T*>(s_.grad_state_n), carry_);
    else
      clear(team, S * s_.batch * H_, carry_);
    if (before_) find_before(team);
  }

  // The states before each row, in the rows' order: the other side of W_hh's gradient.
  void find_before(const Team& team) const {
    const Segment* const end = s_.segments + s_.step_begin[s_.steps];
    for (const Segment* segment = s_.segments; segment < end; ++segment)
      for (Index r = team.begin(segment->rows); r < team.end(segment->rows); ++r)
        before_[segment->row + r] = previous(*segment, 0) + r * H_;
  }

  // grad [rows, H] = a [rows, k] W + base [rows, H], with W_hh's rows from `row` on; each vector of
  // units goes to finish(row in segment, unit, lanes, grad). The product's many small terms are
  // summed before the larger base is added: summed onto it, they would lose seven times more
  // digits.
  template <class Finish>
  void unit_product(const Team& team, const Part& part, Index k, const T* a, Index row,
                    const C* base, const Finish& finish) const {
    // Vector `unit / w` of `count` rows, which are `stride` apart.
    const auto finish_units = [&](const C* product, Index stride, Index row0, Index count,
                                  Index unit) {
      const Finish finish_row = finish;
      const Index lanes = H_ - unit;
      for (Index r = 0; r < count; ++r) {
        V grad = V::load(product + r * stride);
        if (base) grad = grad + V::load(base + (row0 + r) * H_ + unit, lanes);
        finish_row(row0 + r, unit, lanes, grad);
      }
    };
    if constexpr (most_along_rows<T> > 0) {
      if (!packs_) {
        const Index vectors = ceil_div(H_, w);
        product_along_rows(team, part.rows, H_, k, a, GH_, weight_hh(row), sums_);
        for (Index v = team.begin(vectors); v < team.end(vectors); ++v)
          finish_units(sums_ + v * w, vectors * w, 0, part.rows, v * w);
        return;
      }
    }
    const auto finish_tile = [&](const C* tile, Index row0, Index count, Index panel) {
      for (Index v = 0; v < NV && (panel * NV + v) * w < H_; ++v)
        finish_units(tile + v * w, NV * w, row0, count, (panel * NV + v) * w);
    };
    const O* const packed = row ? packed_last_ : packed_hh_;
    product<T, NV>(team, part.rows, ceil_div(H_, w), k, a, GH_, packed, finish_tile, part.among);
  }

  BackwardRows<T, Cell> gate_rows(const Part& segment) const {
    const auto of_row = [&](const void* base) { return base ? at(base, segment.row) : nullptr; };
    BackwardRows<T, Cell> rows{.H = H_,
                               .batch = s_.batch,
                               .reserve_stride = reserve_stride_,
                               .cells_stride = s_.rows * H_,
                               .reserve = reserve(segment.row),
                               .output = of_row(s_.output),
                               .cells = of_row(s_.cells),
                               .grad_output = of_row(s_.grad_output),
                               .grad_cells = of_row(s_.grad_cells),
                               .previous = {},
                               .reset = segment.reset,
                               .carry = carry(0, segment.sequence),
                               .grad_x = grad_x_ + segment.row * GH_,
                               .grad_h = grad_h_ + segment.row * GH_};
    for (int i = 0; i < S; ++i) rows.previous[i] = previous(segment, i);
    return rows;
  }

  void step_(const Team& team, const Part& segment) const {
    const Index k = segment.next < 0 || segment.next_reset ? 0 : back_;
    const bool zoneout = s_.zoneout.on;
    unit_product(team, segment, k, grad_h_ + (segment.next < 0 ? 0 : segment.next * GH_), 0,
                 carry(0, segment.sequence),
                 [this, &segment, zoneout, rows = gate_rows(segment)](
                     Index r, Index unit, Index lanes, V grad) __attribute__((always_inline)) {
                   V kept[at_least_one<R>], prev[S], next[S], grad_next[S], grad_x[G], grad_h[G],
                       back[S];
                   rows.load(r, unit, lanes, grad, kept, prev, next, grad_next);
                   const V zero(C(0));
                   V through[S];  // zoneout's own way back
                   for (int i = 0; i < S; ++i) through[i] = zero;
                   if (zoneout) [[unlikely]] {
                     load_blocks<S>(reserve(segment.row + r) + R * H_ + unit, H_, lanes, next);
                     for (int i = 0; i < S; ++i) {
                       const V share =
                           kept_share<C>(s_.zoneout, i, segment.step, segment.sequence + r, unit);
                       through[i] = keep(s_.zoneout, share, grad_next[i], zero);
                       grad_next[i] = keep(s_.zoneout, share, zero, grad_next[i]);
                     }
                   }
                   Cell::backward(kept, prev, next, grad_next, grad_x, grad_h, back);
                   for (int i = 0; i < S; ++i) back[i] = rows.reset ? zero : back[i] + through[i];
                   rows.store(r, unit, lanes, grad_x, grad_h, back);
                 });
  }

  void operand_step(const Team& team, const Part& segment) const {
    unit_product(team, segment, GH_ - back_, grad_x_ + segment.row * GH_ + back_, back_, nullptr,
                 [&](Index r, Index unit, Index lanes, V grad) {
                   const Index row = segment.row + r;
                   V kept[at_least_one<R>], prev[S], grad_x[at_least_one<first>], back[1];
                   load_blocks<R>(reserve(row) + unit, H_, lanes, kept);
                   load_blocks<first>(grad_x_ + row * GH_ + unit, H_, lanes, grad_x);
                   prev[0] = V::load(previous(segment, 0) + r * H_ + unit, lanes);
                   C* const carried = carry(0, segment.sequence + r) + unit;
                   back[0] = V::load(carried, lanes);
                   const V operand = Cell::operand_backward(kept, prev, grad, grad_x, back);
                   operand.store(operand_ + row * H_ + unit, lanes);
                   store_blocks<first>(grad_x, H_, lanes, grad_x_ + row * GH_ + unit);
                   if (!segment.reset) back[0].store(carried, lanes);
                 });
  }

  void input_gradient(const Team& team, Index begin, Index end) const {
    const Index I = s_.input_size, rows = end - begin;
    const T* const a = grad_x_ + begin * GH_;
    T* const out = static_cast<T*>(s_.grad_input) + begin * I;
    if constexpr (most_along_rows<T> > 0) {
      if (!packs_) {
        each_along_rows(
            team, rows, I, GH_, a, GH_, weight_ih(), sums_,
            [&](Index r, Index column, V sum) { sum.store(out + r * I + column, I - column); });
        return;
      }
    }
    product_by_rows<T, NV>(team, rows, s_.rows, I, GH_, a, packed_ih_, out);
  }

  // The gradient of the initial states: one more product for each sequence's first row.
  void finish_state(const Share& share) const {
    const auto grad_state = [&](int i, Index sequence) {
      return static_cast<T*>(s_.grad_state) + (i * s_.batch + sequence) * H_;
    };
    const Segment* const end = s_.segments + s_.step_begin[s_.steps];
    for (const Segment* segment = s_.segments; segment < end; ++segment) {
      if (segment->prev >= 0) continue;
      const Part part = share.of(*segment);
      unit_product(share.team, part, part.reset ? 0 : back_, grad_h_ + part.row * GH_, 0,
                   carry(0, part.sequence), [&](Index r, Index unit, Index lanes, V grad) {
                     grad.store(grad_state(0, part.sequence + r) + unit, lanes);
                   });
    }
    for (int i = 1; i < S; ++i)
      copy(share.team, (share.end - share.begin) * H_, carry(i, share.begin),
           grad_state(i, share.begin));
  }

  const Backward& s_;
  const bool packs_;  // weights
  const Index H_, GH_;
  // Of a step's gates' gradients, those that go back to h: all, or those before the operand.
  const Index back_;
  const Index reserve_stride_;
  Arena arena_;
  C *carry_, *sums_ = nullptr;
  const T** before_ = nullptr;
  T *zeros_ = nullptr, *operand_ = nullptr, *grad_x_, *grad_h_;
  O *packed_hh_, *packed_last_ = nullptr, *packed_ih_ = nullptr;
  GateWeights<T, Cell> weights_;
};

}  // namespace fastrnn::FASTRNN_ISA
