// The forward pass of one layer: input projection, then per step one product (two for a cell with
// an operand) whose finish is the gate maths.
#pragma once

#include "activations_cpu.h"
#include "along_k_cpu.h"
#include "cells.h"
#include "gate_rows_cpu.h"
#include "gemm_cpu.h"
#include "kernels_cpu.h"
#include "packed_weights_cpu.h"
#include "share_cpu.h"
#include "workspace.h"
#include "zoneout_cpu.h"

namespace fastrnn::FASTRNN_ISA {

template <class T, class Cell>
class ForwardLoop {
  using C = Value<T>;
  using V = Vec<C>;
  static constexpr int G = Cell::gates, S = Cell::states, R = Cell::reserve;
  using Packed = PackedWeights<T, Cell>;
  static constexpr int first = Packed::first, last = Packed::last;
  static constexpr Index w = V::width;
  // Of the projection: bytes that stay in the cache, and rows that are worth reading weights for,
  // unless those come from memory every time: at H = 1500, then, all rows at once.
  static constexpr Index projected_bytes = 256 << 10, projected_rows = 64;
  static constexpr Index cached_weights = 16 << 20;

 public:
  ForwardLoop(const Forward& args, char* workspace, int threads)
      : s_(args),
        H_(args.hidden_size),
        reserve_stride_((args.zoneout.on ? R + S : R) * H_),
        arena_(workspace),
        packs_(args.packed),
        packed_(weights()),
        hh_(read(H_, s_.steps == 1 && s_.step_begin[1] == 1)) {
    if (s_.projects) {
      const Index fits = projected_bytes / Index(G * H_ * sizeof(C));
      const bool cached = G * H_ * s_.input_size * Index(sizeof(Operand<T>)) <= cached_weights;
      const Index worth = cached ? projected_rows : s_.rows;
      chunk_rows_ =
          smaller(s_.rows, larger(s_.batch, s_.source ? handed_rows : larger(fits, worth)));
      x_proj_ = arena_.template take<C>(ceil_div(H_, w) * chunk_rows_ * G * w);
      ih_ = read(s_.input_size, chunk_rows_ == s_.rows);
    }
    if constexpr (first > 0) {
      operand_ = arena_.template take<T>(s_.batch * H_);
      stage_ = arena_.template take<T>(s_.reserve ? 0 : s_.batch * first * H_);
    }
    if (s_.resets) zeros_ = arena_.template take<T>(s_.batch * H_);
    if constexpr (rounds<T>) carry_ = arena_.template take<C>(S * s_.batch * H_);
    if (hh_ == Read::packing || ih_ == Read::packing)
      panels_ = arena_.template take<Operand<T>>(threads * panel_numbers());
  }

  Index bytes() const { return arena_.bytes(); }

  void run(const Team& team) {
    const Share share(s_, team, G * H_ * H_ * Index(sizeof(Operand<T>)));
    if (share.own && ih_ == Read::packing) ih_ = Read::packed;
    if (!s_.packed)
      packed_.pack(team, ih_ == Read::packed ? static_cast<const T*>(s_.weight_ih) : nullptr,
                   hh_ == Read::packed ? static_cast<const T*>(s_.weight_hh) : nullptr);
    for (int i = carried; i < S; ++i) copy(team, s_.batch * H_, state(i), carry(i, 0));
    if (zeros_) clear(team, s_.batch * H_, zeros_);
    team.wait();
    if (share.own) {
      const Index begin = chunk_rows_ * share.begin / s_.batch;
      x_proj_ += begin * ceil_div(H_, w) * G * w;
      chunk_rows_ = chunk_rows_ * share.end / s_.batch - begin;
    }
    Index projected = 0, taken = 0;  // steps, rows of the chunk
    for (Index step = 0; step < s_.steps; ++step) {
      if (s_.projects && step == projected) projected = project(share, step), taken = 0;
      if (share.own) {
        const Part rows = share.of_step(step);
        chunk_begin_ = rows.row - taken, taken += rows.rows;
      }
      const Segment* begin = s_.segments + s_.step_begin[step];
      const Segment* end = s_.segments + s_.step_begin[step + 1];
      if constexpr (first > 0) {
        for (const Segment* segment = begin; segment < end; ++segment)
          operand_step(share.team, share.of(*segment));
        share.team.wait();
      }
      for (const Segment* segment = begin; segment < end; ++segment)
        step_(share.team, share.of(*segment));
      share.team.wait();
      if (s_.progress && share.team.rank == 0) s_.progress->reach(step + 1);
    }
    for (const Segment* segment = s_.segments; segment < s_.segments + s_.step_begin[s_.steps];
         ++segment)
      if (segment->next < 0) {
        const Part part = share.of(*segment);
        copy(share.team, part.rows * H_, output(part.row), state_n(0) + part.sequence * H_);
      }
    if constexpr (rounds<T>)
      for (int i = 1; i < S; ++i)
        copy(share.team, (share.end - share.begin) * H_, carry(i, share.begin),
             state_n(i) + share.begin * H_);
  }

 private:
  // How a product reads its weight: packed beforehand; packing each panel as it comes to it, which
  // serves the single product of a whole team; or, of few rows, along k. The last is a matter of
  // the layer's rows alone, however they are cut for threads: its sums have an order of their own.
  enum class Read { packed, packing, along_k };
  Read read(Index k, bool once) const {
    if (s_.packed) return Read::packed;
    if (worth_along_k<T>(s_.rows, k)) return Read::along_k;
    return once ? Read::packing : Read::packed;
  }

  const T* state(int i) const { return static_cast<const T*>(s_.state) + i * s_.batch * H_; }
  T* state_n(int i) const { return static_cast<T*>(s_.state_n) + i * s_.batch * H_; }
  T* output(Index row) const { return static_cast<T*>(s_.output) + row * H_; }
  T* reserve(Index row) const { return static_cast<T*>(s_.reserve) + row * reserve_stride_; }
  // Of the first row of a segment's h before the step, as the product reads it.
  const T* previous(const Segment& segment) const {
    if (segment.reset) return zeros_;
    return segment.prev < 0 ? state(0) + segment.sequence * H_ : output(segment.prev);
  }

  // The states as they go on from step to step, never rounded: [S, B, H], or where they need no
  // rounding, what becomes state_n, and h in the output.
  static constexpr int carried = ForwardRows<T, Cell>::carried;
  C* carry(int i, Index sequence) const {
    if constexpr (rounds<T>)
      return carry_ + (i * s_.batch + sequence) * H_;
    else
      return state_n(i) + sequence * H_;
  }

  // Projects the share's rows of the steps from `step` on that fit into the buffer; returns the
  // step after them. So many at a time stay in the cache until they are read: storing the whole
  // projection took a third of the product's time. The thread that reads a part of it makes it.
  Index project(const Share& share, Index step) {
    const auto product_of = [&](Index row, Index rows, Index place) {
      gate_product<G>(share.team, rows, s_.rows, s_.input_size,
                      static_cast<const T*>(s_.input) + row * s_.input_size, ih_, packed_.ih,
                      static_cast<const T*>(s_.weight_ih), static_cast<const T*>(s_.bias_ih),
                      [&](Index r, Index unit, Index, const V* x) __attribute__((always_inline)) {
                        store_blocks<G>(x, w, w, projected_(place + r, unit));
                      });
    };
    Index rows = 0;
    chunk_begin_ = s_.rows;
    for (; step < s_.steps; ++step) {  // a step may have no rows: all its sequences have ended
      const Part more = share.of_step(step);
      if (rows + more.rows > chunk_rows_) break;
      if (share.own)
        product_of(more.row, more.rows, rows);
      else if (more.rows > 0)
        chunk_begin_ = smaller(chunk_begin_, more.row);
      rows += more.rows;
    }
    if (s_.source) s_.source->wait_for(step);
    if (!share.own) product_of(chunk_begin_, rows, 0);
    share.team.wait();
    return step;
  }

  // x_proj_ is [units / w][rows of the chunk][G][w].
  C* projected_(Index row_in_chunk, Index unit) const {
    return x_proj_ + (unit / w * chunk_rows_ + row_in_chunk) * G * w;
  }

  ForwardRows<T, Cell> gate_rows(const Part& segment) const {
    return {.H = H_,
            .batch = s_.batch,
            .chunk_rows = chunk_rows_,
            .reserve_stride = reserve_stride_,
            .cells_stride = s_.rows * H_,
            .projected = s_.projects ? projected_(segment.row - chunk_begin_, 0) : nullptr,
            .input = s_.projects ? nullptr : static_cast<const T*>(s_.input) + segment.row * G * H_,
            .prev_h = previous(segment),
            .reset = segment.reset,
            .carry = S > carried ? carry(carried, segment.sequence) : nullptr,
            .output = output(segment.row),
            .reserve = s_.reserve ? reserve(segment.row) : nullptr,
            .cells = s_.cells ? static_cast<T*>(s_.cells) + segment.row * H_ : nullptr};
  }

  // Gates * H columns of bias + a [rows, k] W; finish(row, unit, lanes, gates) gets each vector of
  // units once. These are rows `among` others. W is `weight`, or `packed`.
  template <int Gates, class Finish>
  void gate_product(const Team& team, Index rows, Index among, Index k, const T* a, Read read,
                    const Operand<T>* packed, const T* weight, const T* bias,
                    const Finish& finish) const {
    constexpr int Units = panel_units<Gates>, NV = Gates * Units;
    const auto finish_tile = [&](const C* tile, Index row0, Index count, Index panel) {
      const Finish finish_row = finish;
      for (Index u = 0; u < Units; ++u) {
        const Index unit = (panel * Units + u) * w, lanes = H_ - unit;
        if (lanes <= 0) break;
        V biases[Gates];
        load_blocks<Gates>(bias + unit, H_, bias ? lanes : 0, biases);
        for (Index r = 0; r < count; ++r) {
          V gates[Gates];
#pragma GCC unroll 4
          for (int g = 0; g < Gates; ++g)
            gates[g] = V::load(tile + (r * NV + u * Gates + g) * w) + biases[g];
          finish_row(row0 + r, unit, lanes, gates);
        }
      }
    };
    if (read == Read::along_k)
      return product_along_k<T, Gates, Units>(team, rows, H_, k, a, k, weight, finish_tile);
    const auto pack = [&](Index panel, Operand<T>* here) {
      packed_.template pack_panel<Gates>(weight, k, panel, here);
    };
    const Panels<T, decltype(pack)> panels(
        read == Read::packed ? packed : nullptr, Packed::template panel_numbers<Gates>(k),
        read == Read::packing ? panels_ + team.rank * panel_numbers() : nullptr, pack);
    panel_product<T, NV>(team, rows, ceil_div(H_, w) * Gates, k, a, k, panels, finish_tile, among);
  }
  // Of the largest panel.
  Index panel_numbers() const {
    const Index k = larger(s_.projects ? s_.input_size : 0, H_);
    return larger(Packed::template panel_numbers<G>(k),
                  larger(Packed::template panel_numbers<last>(k),
                         Packed::template panel_numbers<at_least_one<first>>(k)));
  }

  const T* weight_hh(int gate) const {
    return s_.weight_hh ? static_cast<const T*>(s_.weight_hh) + gate * H_ * H_ : nullptr;
  }
  const T* bias_hh(int gate) const {
    return s_.bias_hh ? static_cast<const T*>(s_.bias_hh) + gate * H_ : nullptr;
  }

  // Where a cell with an operand leaves its first gates for the second product.
  T* stage(const Part& segment, Index r) const {
    return s_.reserve ? reserve(segment.row + r) : stage_ + (segment.sequence + r) * first * H_;
  }

  void operand_step(const Team& team, const Part& segment) const {
    gate_product<at_least_one<first>>(
        team, segment.rows, segment.among, H_, previous(segment), hh_, packed_.first_gates,
        weight_hh(0), bias_hh(0),
        [this, &segment, rows = gate_rows(segment)](Index r, Index unit, Index lanes, const V* h)
            __attribute__((always_inline)) {
              V x[G], prev[S], kept[at_least_one<first>];
              rows.template load_projected<first>(r, unit, lanes, 0, x);
              rows.load_previous(r, unit, lanes, prev);
              const V operand = Cell::operand(x, h, prev, kept);
              operand.store(operand_ + (segment.sequence + r) * H_ + unit, lanes);
              store_blocks<first>(kept, H_, lanes, stage(segment, r) + unit);
            });
  }

  void step_(const Team& team, const Part& segment) const {
    const T* a = first > 0 ? operand_ + segment.sequence * H_ : previous(segment);
    const bool zoneout = s_.zoneout.on;
    gate_product<last>(
        team, segment.rows, segment.among, H_, a, hh_, packed_.last_gates, weight_hh(first),
        bias_hh(first),
        [this, &segment, zoneout, rows = gate_rows(segment)](
            Index r, Index unit, Index lanes, const V* h) __attribute__((always_inline)) {
          V x[last], prev[S], next[S], kept[at_least_one<R>];
          rows.template load_projected<last>(r, unit, lanes, first, x);
          if constexpr (first > 0) load_blocks<first>(stage(segment, r) + unit, H_, lanes, kept);
          rows.load_previous(r, unit, lanes, prev);
          Cell::forward(x, h, prev, next, kept);
          const Index slot = r * rows.reserve_stride + unit;
          if (rows.reserve) store_blocks<R>(kept, rows.H, lanes, rows.reserve + slot);
          if (zoneout) [[unlikely]] {
            if (rows.reserve)
              store_blocks<S>(next, rows.H, lanes, rows.reserve + slot + R * rows.H);
            for (int i = 0; i < S; ++i)
              next[i] = keep(s_.zoneout,
                             kept_share<C>(s_.zoneout, i, segment.step, segment.sequence + r, unit),
                             prev[i], next[i]);
          }
          rows.store(r, unit, lanes, next);
        });
  }

  Packed weights() {
    return Packed(s_.packed ? packs_ : arena_, s_.projects ? s_.input_size : 0, H_);
  }

  const Forward& s_;
  const Index H_, reserve_stride_;
  Arena arena_, packs_;
  const Packed packed_;
  const Read hh_;
  Read ih_ = Read::packed;
  C *x_proj_ = nullptr, *carry_ = nullptr;
  T *operand_ = nullptr, *stage_ = nullptr, *zeros_ = nullptr;
  Operand<T>* panels_ = nullptr;
  Index chunk_rows_ = 0, chunk_begin_ = 0;  // of the projection that x_proj_ holds
};

}  // namespace fastrnn::FASTRNN_ISA
