// The forward pass of a layer with layer normalisation or a projection of h: per step the state's
// product, then row by row what needs all of it. The input is projected before the loop.
#pragma once

#include "along_k_cpu.h"
#include "kernels_cpu.h"
#include "packed_weights_cpu.h"
#include "rows_cpu.h"
#include "workspace.h"
#include "zoneout_cpu.h"

namespace fastrnn::FASTRNN_ISA {

template <class T, class Cell>
class RowsForward {
  using V = Vec<T>;
  using Packed = PackedWeights<T, Cell>;
  static constexpr int G = Cell::gates, S = Cell::states, R = Cell::reserve;
  static constexpr int units = panel_units<G>, NV = G * units;
  static constexpr Index w = V::width;

 public:
  RowsForward(const Forward& args, char* workspace, int threads)
      : s_(args),
        H_(args.hidden_size),
        P_(args.projected ? args.projected : H_),
        slots_(args),
        keeps_products_(args.gains && args.reserve),
        ih_unpacked_(unpacked(s_.input_size)),
        hh_unpacked_(unpacked(P_)),
        hr_unpacked_(unpacked(H_)),
        arena_(workspace),
        packs_(args.packed),
        packed_(s_.packed ? packs_ : arena_, s_.projects ? s_.input_size : 0, H_, s_.projected) {
    if (!keeps_products_) {
      if (s_.projects) x_proj_ = arena_.template take<T>(s_.rows * G * H_);
      h_proj_ = arena_.template take<T>(s_.batch * G * H_);
    }
    if (s_.projected && !s_.reserve) unprojected_ = arena_.template take<T>(s_.batch * H_);
    buffers_ = arena_.template take<T>(threads * (R + 1) * H_);
  }

  Index bytes() const { return arena_.bytes(); }

  void run(const Team& team) {
    if (!s_.packed)
      packed_.pack(team, ih_unpacked_ ? nullptr : weight(s_.weight_ih),
                   hh_unpacked_ ? nullptr : weight(s_.weight_hh),
                   hr_unpacked_ ? nullptr : weight(s_.weight_hr));
    team.wait();
    if (s_.projects) {
      const Index I = s_.input_size;
      const T* const input = static_cast<const T*>(s_.input);
      const auto store = [&](const T* tile, Index row0, Index count, Index panel) {
        for (Index r = 0; r < count; ++r) store_gates(tile + r * NV * w, panel, x_proj(row0 + r));
      };
      if (ih_unpacked_)
        product_along_k<T, G, units>(team, s_.rows, H_, I, input, I, weight(s_.weight_ih), store);
      else
        product<T, NV>(team, s_.rows, ceil_div(H_, w) * G, I, input, I, packed_.ih, store);
      team.wait();
    }
    const SequenceBlocks blocks(team, s_.batch);
    begin(blocks);
    T* const buffer = buffers_ + team.rank * (R + 1) * H_;
    for (Index step = 0; step < s_.steps; ++step) {
      const Segment* const first = s_.segments + s_.step_begin[step];
      const Segment* const last = s_.segments + s_.step_begin[step + 1];
      if (first == last) continue;  // all sequences have ended
      blocks.beginning_anew(first, last, [&](Index s) {
        for (int i = 0; i < S; ++i) clear(team.alone(), H_, state(i, s));
      });
      step_(team, blocks, first->step, first->row, last[-1].sequence + last[-1].rows, buffer);
    }
  }

 private:
  static const T* weight(const void* weight) { return static_cast<const T*>(weight); }
  // Whether a product over k takes its weights as they lie.
  bool unpacked(Index k) const { return !s_.packed && worth_along_k<T>(s_.rows, k); }

  // The states, which move on in state_n.
  T* state(int i, Index sequence) const {
    return static_cast<T*>(s_.state_n) + (i * s_.batch + sequence) * H_;
  }
  T* reserve(Index row) const { return static_cast<T*>(s_.reserve) + row * slots_.count * H_; }
  T* x_proj(Index row) const {
    if (keeps_products_) return reserve(row) + slots_.x * H_;
    return x_proj_ + row * G * H_;
  }
  T* h_proj(Index row, Index sequence) const {
    return keeps_products_ ? reserve(row) + slots_.h * H_ : h_proj_ + sequence * G * H_;
  }

  void begin(const SequenceBlocks& blocks) const {
    for (int i = 0; i < S; ++i)
      for (Index sequence = blocks.begin; sequence < blocks.end; ++sequence) {
        const T* from = static_cast<const T*>(s_.state) + (i * s_.batch + sequence) * H_;
        const Index units_here = i == 0 ? P_ : H_;
        for (Index j = 0; j < H_; ++j) state(i, sequence)[j] = j < units_here ? from[j] : T(0);
      }
  }

  // A row of a tile of gates of the same units, to all gates' rows side by side: out [G*H].
  void store_gates(const T* tile, Index panel, T* out) const {
    for (Index u = 0; u < units; ++u) {
      const Index unit = (panel * units + u) * w;
      if (unit >= H_) break;
      V gates[G];
      load_blocks<G>(tile + u * G * w, w, w, gates);
      store_blocks<G>(gates, H_, H_ - unit, out + unit);
    }
  }

  // row0: of the step's first sequence. Weights as they lie are read by all threads together.
  void step_(const Team& team, const SequenceBlocks& blocks, Index step, Index row0, Index active,
             T* buffer) const {
    const auto store = [&](const T* tile, Index s, Index rows, Index panel) {
      for (Index r = 0; r < rows; ++r)
        store_gates(tile + r * NV * w, panel, h_proj(row0 + s + r, s + r));
    };
    if (hh_unpacked_) {
      team.wait();
      product_along_k<T, G, units>(team, active, H_, P_, state(0, 0), H_, weight(s_.weight_hh),
                                   store);
      team.wait();
    } else {
      blocks.template product<T, NV>(active, ceil_div(H_, w) * G, P_, state(0, 0), H_,
                                     packed_.last_gates, store);
    }
    for (Index s = blocks.begin; s < smaller(blocks.end, active); ++s) {
      if (s_.gains)
        row<true>(step, row0 + s, s, buffer);
      else if constexpr (S > 1)
        row<false>(step, row0 + s, s, buffer);
    }
    if (!s_.projected) return;
    constexpr int NVP = Packed::projection_vectors;
    const T* const from = s_.reserve ? reserve(row0) + R * H_ : unprojected_;
    const Index ld = s_.reserve ? slots_.count * H_ : H_;
    const auto finish = [&](const T* tile, Index s, Index rows, Index panel) {
      for (Index v = 0; v < NVP; ++v) {
        const Index unit = (panel * NVP + v) * w;
        if (unit >= P_) break;
        for (Index r = 0; r < rows; ++r)
          move_on(0, step, row0 + s + r, s + r, unit, P_ - unit, V::load(tile + (r * NVP + v) * w));
      }
    };
    if (hr_unpacked_) {
      team.wait();
      product_along_k<T, 1, NVP>(team, active, P_, H_, from, ld, weight(s_.weight_hr), finish);
      team.wait();
    } else {
      blocks.template product<T, NVP>(active, ceil_div(P_, w), H_, from, ld, packed_.projection,
                                      finish);
    }
  }

  // A step's gate maths; `buffer` holds R + 1 rows [H].
  template <bool Normed>
  void row(Index step, Index row, Index sequence, T* buffer) const {
    const T* const x_row =
        s_.projects ? x_proj(row) : static_cast<const T*>(s_.input) + row * G * H_;
    const T* const h_row = h_proj(row, sequence);
    const T* const bias_ih = static_cast<const T*>(Normed || s_.projects ? s_.bias_ih : nullptr);
    const T* const bias_hh = static_cast<const T*>(s_.bias_hh);
    const T *const gain_ih = static_cast<const T*>(s_.gains), *const gain_hh = gain_ih + G * H_;
    T *const kept_row = s_.reserve ? reserve(row) : buffer, *const c_row = buffer + R * H_;
    const Index columns = Normed ? G * H_ : 0;
    const Moments<T> of_x(x_row, columns), of_h(h_row, columns);
    for (Index unit = 0; unit < H_; unit += w) {
      const Index lanes = H_ - unit;
      V x[G], h[G], b[G], prev[S], next[S], kept[R];
      load_blocks<G>(x_row + unit, H_, lanes, x);
      load_blocks<G>(h_row + unit, H_, lanes, h);
      if (Normed && keeps_products_ && !s_.projects)
        store_blocks<G>(x, H_, lanes, x_proj(row) + unit);
      if constexpr (Normed) {
        normalise(of_x, gain_ih + unit, lanes, x);
        normalise(of_h, gain_hh + unit, lanes, h);
      }
      load_blocks<G>(bias_ih + unit, H_, bias_ih ? lanes : 0, b);
      for (int g = 0; g < G; ++g) x[g] = x[g] + b[g];
      load_blocks<G>(bias_hh + unit, H_, bias_hh ? lanes : 0, b);
      for (int g = 0; g < G; ++g) h[g] = h[g] + b[g];
      for (int i = 0; i < S; ++i) prev[i] = V::load(state(i, sequence) + unit, lanes);
      Cell::forward(x, h, prev, next, kept);
      store_blocks<R>(kept, H_, lanes, kept_row + unit);
      if constexpr (Normed && S > 1)
        next[1].store(c_row + unit, lanes);
      else
        finish(step, row, sequence, unit, lanes, next);
    }
    if constexpr (Normed && S > 1) {
      const T *const gain = gain_hh + G * H_, *const bias = gain + H_;
      const Moments<T> of_c(c_row, H_);
      for (Index unit = 0; unit < H_; unit += w) {
        const Index lanes = H_ - unit;
        V kept[R], next[S];
        load_blocks<R>(kept_row + unit, H_, lanes, kept);
        next[1] = V::load(c_row + unit, lanes);
        next[0] = Cell::output(kept, of_c.normalised(next[1]) * V::load(gain + unit, lanes) +
                                         V::load(bias + unit, lanes));
        finish(step, row, sequence, unit, lanes, next);
      }
    }
  }

  FASTRNN_INLINE void normalise(const Moments<T>& moments, const T* gain, Index lanes,
                                V* gates) const {
    V gains[G];
    load_blocks<G>(gain, H_, lanes, gains);
    for (int g = 0; g < G; ++g) gates[g] = moments.normalised(gates[g]) * gains[g];
  }

  FASTRNN_INLINE void finish(Index step, Index row, Index sequence, Index unit, Index lanes,
                             const V* next) const {
    if (s_.reserve && slots_.states) store_blocks<S>(next, H_, lanes, reserve(row) + R * H_ + unit);
    if (unprojected_) next[0].store(unprojected_ + sequence * H_ + unit, lanes);
    for (int i = s_.projected ? 1 : 0; i < S; ++i)
      move_on(i, step, row, sequence, unit, lanes, next[i]);
  }

  // State i after the step.
  FASTRNN_INLINE void move_on(int i, Index step, Index row, Index sequence, Index unit, Index lanes,
                              V next) const {
    T* const here = state(i, sequence) + unit;
    if (s_.zoneout.on)
      next = keep(s_.zoneout, kept_share<T>(s_.zoneout, i, step, sequence, unit),
                  V::load(here, lanes), next);
    next.store(here, lanes);
    if (i == 0)
      next.store(static_cast<T*>(s_.output) + row * P_ + unit, lanes);
    else if (s_.cells)
      next.store(static_cast<T*>(s_.cells) + ((i - 1) * s_.rows + row) * H_ + unit, lanes);
  }

  const Forward& s_;
  const Index H_, P_;  // P: units of h
  const Slots<Cell> slots_;
  const bool keeps_products_, ih_unpacked_, hh_unpacked_, hr_unpacked_;
  Arena arena_, packs_;
  const Packed packed_;
  T *x_proj_ = nullptr, *h_proj_ = nullptr, *unprojected_ = nullptr, *buffers_;
};

}  // namespace fastrnn::FASTRNN_ISA
