// The backward pass of a layer with layer normalisation or a projection of h: per step, backwards,
// row by row the gates' gradients, then their product with W_hh; after the loop one product each
// for the input's and the weights' gradients.
#pragma once

#include "along_k_cpu.h"
#include "gain_sums_cpu.h"
#include "gate_weights_cpu.h"
#include "kernels_cpu.h"
#include "packed_weights_cpu.h"
#include "rows_cpu.h"
#include "workspace.h"
#include "zoneout_cpu.h"

namespace fastrnn::FASTRNN_ISA {

template <class T, class Cell>
class RowsBackward {
  using V = Vec<T>;
  static constexpr int G = Cell::gates, S = Cell::states, R = Cell::reserve;
  static constexpr int NV = 2;
  static constexpr Index w = V::width;
  // Steps whose gradients of gains are summed before they join the sums of all.
  static constexpr Index summed_steps = 32;

 public:
  RowsBackward(const Backward& args, char* workspace, int threads)
      : s_(args),
        H_(args.hidden_size),
        P_(args.projected ? args.projected : H_),
        GH_(G * H_),
        gains_(2 * (GH_ + (S - 1) * H_)),
        slots_(args),
        packs_(args.rows > most_along_rows<T>),
        arena_(workspace) {
    const Index N = s_.rows, I = s_.input_size;
    for (int i = 0; i < S; ++i) before_[i] = arena_.template take<const T*>(N);
    zeros_ = arena_.template take<T>(H_);
    if (packs_)
      packed_hh_ = arena_.template take<T>(panel_size<T, NV>(P_, GH_));
    else
      sums_along_ = arena_.template take<T>(N * ceil_div(larger(H_, I), w) * w);
    grad_x_ = s_.weight_ih ? arena_.template take<T>(N * GH_) : static_cast<T*>(s_.grad_input);
    const bool shared = !s_.gains && shared_gradients<Cell>;
    grad_h_ = shared ? grad_x_ : arena_.template take<T>(N * GH_);
    if (packs_ && s_.weight_ih && s_.grad_input)
      packed_ih_ = arena_.template take<T>(panel_size<T, NV>(I, GH_));
    if (s_.projected) {
      if (packs_) packed_hr_ = arena_.template take<T>(panel_size<T, NV>(H_, P_));
      grad_output_ = arena_.template take<T>(N * P_);
      grad_unprojected_ = arena_.template take<T>(s_.batch * H_);
    }
    if (s_.gains) {
      const Index biases = (shared_gradients<Cell> ? 1 : 2) * GH_;
      sums_ = GainSums<T>(arena_, SequenceBlocks::blocks_of(s_.batch), gains_ + biases);
      buffers_ = arena_.template take<T>(threads * H_);
    }
    if (s_.grad_weight_hh) weights_ = GateWeights<T, Cell>(s_, arena_, threads);
  }

  Index bytes() const { return arena_.bytes(); }

  void run(const Team& team) const {
    find_states_before<T, S>(team, s_, zeros_, before_);
    const SequenceBlocks blocks(team, s_.batch);
    begin(blocks);
    team.wait();
    if (packs_) pack(team);
    team.wait();
    T* const buffer = buffers_ + team.rank * H_;
    for (Index step = s_.steps - 1; step >= 0; --step) {
      const Segment* const first = s_.segments + s_.step_begin[step];
      const Segment* const last = s_.segments + s_.step_begin[step + 1];
      if (first < last)
        step_(team, blocks, first->step, first->row, last[-1].sequence + last[-1].rows, buffer);
      blocks.beginning_anew(first, last, [&](Index s) {
        for (int i = 0; i < S; ++i) clear(team.alone(), H_, carry(i, s));
      });
      if (s_.gains && step % summed_steps == 0)
        for (Index b = blocks.first_block; b < blocks.last_block; ++b) sums_.join(b);
    }
    team.wait();
    if (s_.weight_ih && s_.grad_input) input_gradient(team);
    if (!s_.grad_weight_hh) return;
    if (s_.gains)
      sums_.store(team, static_cast<T*>(s_.grad_gains), gains_, static_cast<T*>(s_.grad_bias_ih),
                  static_cast<T*>(s_.grad_bias_hh), GH_);
    weights_.run(team, {grad_x_, grad_h_, grad_output_}, before_[0],
                 s_.projected ? reserve(0) + R * H_ : nullptr, slots_.count * H_);
  }

 private:
  static const T* weight(const void* weight) { return static_cast<const T*>(weight); }
  const T* reserve(Index row) const {
    return static_cast<const T*>(s_.reserve) + row * slots_.count * H_;
  }
  // The gradient of state i after the step that is next backwards.
  T* carry(int i, Index sequence) const {
    return static_cast<T*>(s_.grad_state) + (i * s_.batch + sequence) * H_;
  }
  // c as the step made it.
  const T* made(Index row) const {
    return slots_.states ? reserve(row) + (R + 1) * H_ : static_cast<const T*>(s_.cells) + row * H_;
  }

  void begin(const SequenceBlocks& blocks) const {
    const T* const grad = static_cast<const T*>(s_.grad_state_n);
    for (int i = 0; i < S; ++i)
      for (Index sequence = blocks.begin; sequence < blocks.end; ++sequence) {
        const T* const from = grad + (i * s_.batch + sequence) * H_;
        const Index units = !grad ? 0 : i == 0 ? P_ : H_;
        for (Index j = 0; j < H_; ++j) carry(i, sequence)[j] = j < units ? from[j] : T(0);
      }
    if (s_.gains)
      for (Index b = blocks.first_block; b < blocks.last_block; ++b) sums_.clear(b);
  }

  void pack(const Team& team) const {
    const auto rows_of = [](const void* base, Index ld) {
      return [=](Index row) { return weight(base) + row * ld; };
    };
    pack_rows<T, NV>(team, P_, GH_, rows_of(s_.weight_hh, P_), packed_hh_);
    if (packed_hr_) pack_rows<T, NV>(team, H_, P_, rows_of(s_.weight_hr, H_), packed_hr_);
    if (packed_ih_)
      pack_rows<T, NV>(team, s_.input_size, GH_, rows_of(s_.weight_ih, s_.input_size), packed_ih_);
  }

  void input_gradient(const Team& team) const {
    const Index I = s_.input_size;
    T* const out = static_cast<T*>(s_.grad_input);
    if (packs_)
      product_by_rows<T, NV>(team, s_.rows, s_.rows, I, GH_, grad_x_, packed_ih_, out);
    else
      each_along_rows(
          team, s_.rows, I, GH_, grad_x_, GH_, weight(s_.weight_ih), sums_along_,
          [&](Index row, Index column, V sum) { sum.store(out + row * I + column, I - column); });
  }

  // row0: of the step's first sequence.
  void step_(const Team& team, const SequenceBlocks& blocks, Index step, Index row0, Index active,
             T* buffer) const {
    const Index end = smaller(blocks.end, active);
    if (s_.projected) {
      for (Index s = blocks.begin; s < end; ++s)
        for (Index unit = 0; unit < P_; unit += w) {
          V through;
          const V grad = arriving(0, step, row0 + s, s, unit, P_ - unit, through);
          grad.store(grad_output_ + (row0 + s) * P_ + unit, P_ - unit);
          through.store(carry(0, s) + unit, P_ - unit);
        }
      units_product(team, blocks, active, H_, P_, grad_output_ + row0 * P_, packed_hr_,
                    weight(s_.weight_hr), [&](Index s, Index unit, V grad) {
                      grad.store(grad_unprojected_ + s * H_ + unit, H_ - unit);
                    });
    }
    for (Index block = blocks.first_block; block < blocks.last_block; ++block)
      for (Index s = blocks.start(block); s < smaller(blocks.start(block + 1), active); ++s) {
        if (s_.gains)
          normed_row(step, row0 + s, s, buffer, sums_.recent(block));
        else if constexpr (S > 1)
          row(step, row0 + s, s);
      }
    // The product's many small terms are summed before the larger carry joins them.
    units_product(team, blocks, active, P_, GH_, grad_h_ + row0 * GH_, packed_hh_,
                  weight(s_.weight_hh), [&](Index s, Index unit, V grad) {
                    T* const here = carry(0, s) + unit;
                    (grad + V::load(here, P_ - unit)).store(here, P_ - unit);
                  });
  }

  // a [sequences, k] W [k, columns], W maybe packed; each vector goes to finish(sequence, column,
  // vector). All threads read weights as they lie together.
  template <class Finish>
  void units_product(const Team& team, const SequenceBlocks& blocks, Index active, Index columns,
                     Index k, const T* a, const T* packed, const T* weight,
                     const Finish& finish) const {
    if (!packs_) {
      team.wait();
      each_along_rows(team, active, columns, k, a, k, weight, sums_along_, finish);
      return team.wait();
    }
    blocks.template product<T, NV>(active, ceil_div(columns, w), k, a, k, packed,
                                   [&](const T* tile, Index s, Index rows, Index panel) {
                                     for (Index v = 0; v < NV; ++v) {
                                       const Index column = (panel * NV + v) * w;
                                       if (column >= columns) break;
                                       for (Index r = 0; r < rows; ++r)
                                         finish(s + r, column, V::load(tile + (r * NV + v) * w));
                                     }
                                   });
  }

  // The gradient that reaches state i as the step made it; `through` goes on to the state before,
  // which zoneout kept.
  FASTRNN_INLINE V arriving(int i, Index step, Index row, Index sequence, Index unit, Index lanes,
                            V& through) const {
    const T* const given = static_cast<const T*>(i == 0 ? s_.grad_output : s_.grad_cells);
    const Index at = i == 0 ? row * P_ : ((i - 1) * s_.rows + row) * H_;
    V grad = V::load(carry(i, sequence) + unit, lanes);
    if (given) grad = grad + V::load(given + at + unit, lanes);
    const V zero(T(0));
    through = zero;
    if (!s_.zoneout.on) return grad;
    const V share = kept_share<T>(s_.zoneout, i, step, sequence, unit);
    through = keep(s_.zoneout, share, grad, zero);
    return keep(s_.zoneout, share, zero, grad);
  }

  // Of a cell whose h is projected.
  void row(Index step, Index row, Index sequence) const {
    for (Index unit = 0; unit < H_; unit += w) {
      const Index lanes = H_ - unit;
      V kept[R], prev[S], next[S], grad_next[S], grads[G], unused[G], back[S], through;
      load_blocks<R>(reserve(row) + unit, H_, lanes, kept);
      grad_next[0] = V::load(grad_unprojected_ + sequence * H_ + unit, lanes);
      grad_next[1] = arriving(1, step, row, sequence, unit, lanes, through);
      prev[0] = next[0] = V(T(0));  // an LSTM's gradients need neither
      prev[1] = V::load(before_[1][row] + unit, lanes);
      next[1] = V::load(made(row) + unit, lanes);
      Cell::backward(kept, prev, next, grad_next, grads, unused, back);
      store_blocks<G>(grads, H_, lanes, grad_x_ + row * GH_ + unit);
      (back[1] + through).store(carry(1, sequence) + unit, lanes);
    }
  }

  void normed_row(Index step, Index row, Index sequence, T* buffer, T* sums) const {
    T *const grad_x = grad_x_ + row * GH_, *const grad_h = grad_h_ + row * GH_;
    const T *const x = reserve(row) + slots_.x * H_, *const h = reserve(row) + slots_.h * H_;
    const T *const gain_ih = static_cast<const T*>(s_.gains), *const gain_hh = gain_ih + GH_;
    T *const sums_hh = sums + GH_, *const sums_bias = sums + gains_;
    if constexpr (S > 1) {
      const T* const gain_c = gain_hh + GH_;
      T* const sums_c = sums_hh + GH_;
      const Moments<T> of_c(made(row), H_);
      output_backward(step, row, sequence, of_c, gain_c, buffer);
      norm_backward(of_c, made(row), gain_c, buffer, H_, buffer, sums_c, sums_c + H_);
    }
    for (Index unit = 0; unit < H_; unit += w) {
      const Index lanes = H_ - unit;
      V kept[R], prev[S], grads_x[G], grads_h[G], back[S], through;
      load_blocks<R>(reserve(row) + unit, H_, lanes, kept);
      for (int i = 0; i < S; ++i) prev[i] = V::load(before_[i][row] + unit, lanes);
      const V grad = arriving(S - 1, step, row, sequence, unit, lanes, through);
      if constexpr (S > 1) {
        load_blocks<G>(grad_x + unit, H_, lanes, grads_x);
        Cell::cell_backward(kept, prev, grad + V::load(buffer + unit, lanes), grads_x, back);
      } else {
        Cell::backward(kept, prev, prev, &grad, grads_x, grads_h, back);
      }
      store_blocks<G>(grads_x, H_, lanes, grad_x + unit);
      if constexpr (!shared_gradients<Cell>) store_blocks<G>(grads_h, H_, lanes, grad_h + unit);
      (back[S - 1] + through).store(carry(S - 1, sequence) + unit, lanes);
    }
    if constexpr (shared_gradients<Cell>)
      norm_backward<T>(Moments<T>(h, GH_), h, gain_hh, grad_x, GH_, grad_h, sums_hh, nullptr);
    else
      norm_backward(Moments<T>(h, GH_), h, gain_hh, grad_h, GH_, grad_h, sums_hh, sums_bias + GH_);
    norm_backward(Moments<T>(x, GH_), x, gain_ih, grad_x, GH_, grad_x, sums, sums_bias);
  }

  // From h to the normalised c, whose gradient `grad_c` [H] gets; the gate on the way, to grad_x.
  void output_backward(Index step, Index row, Index sequence, const Moments<T>& of_c, const T* gain,
                       T* grad_c) const {
    for (Index unit = 0; unit < H_; unit += w) {
      const Index lanes = H_ - unit;
      V kept[R], grads[G], through;
      load_blocks<R>(reserve(row) + unit, H_, lanes, kept);
      const V grad = arriving(0, step, row, sequence, unit, lanes, through);
      through.store(carry(0, sequence) + unit, lanes);
      const V c = of_c.normalised(V::load(made(row) + unit, lanes)) * V::load(gain + unit, lanes) +
                  V::load(gain + H_ + unit, lanes);
      for (int g = 0; g < G; ++g) grads[g] = V(T(0));
      Cell::output_backward(kept, c, grad, grads).store(grad_c + unit, lanes);
      store_blocks<G>(grads, H_, lanes, grad_x_ + row * GH_ + unit);
    }
  }

  const Backward& s_;
  const Index H_, P_, GH_;  // P: units of h
  const Index gains_;
  const Slots<Cell> slots_;
  const bool packs_;  // weights
  Arena arena_;
  const T** before_[S];  // [N] each
  T *zeros_, *packed_hh_ = nullptr, *packed_hr_ = nullptr, *packed_ih_ = nullptr;
  T* sums_along_ = nullptr;
  T *grad_x_, *grad_h_, *grad_output_ = nullptr, *grad_unprojected_ = nullptr;
  GainSums<T> sums_;  // of the gains, then of the biases
  T* buffers_ = nullptr;
  GateWeights<T, Cell> weights_;
};

}  // namespace fastrnn::FASTRNN_ISA
