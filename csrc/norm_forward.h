// A step's gate maths under layer normalisation, a block to a row: what follows a product with
// W_hh.
#pragma once

#include "norm_rows.h"
#include "step_forward.h"

namespace fastrnn::cuda {

template <class T, class Cell, int Width>
__global__ void __launch_bounds__(row_threads)
    norm_forward(Forward f, Regularisers extras, Step step, const T* product, Sum<T>* inner) {
  constexpr int G = Cell::gates, S = Cell::states, R = Cell::reserve;
  using V = Sum<T>;
  using P = Packet<T, Width>;
  FASTRNN_SHARED(V, shared);
  const Index H = f.hidden_size, GH = G * H, sequence = block_row(), row = step.row + sequence;
  if (sequence >= step.rows) return;
  const bool reset = extras.reset(row);
  const T* const x_row = static_cast<const T*>(f.x_proj) + row * GH;
  const T* const h_row = reset ? nullptr : product + sequence * GH;
  const T *const gain_ih = static_cast<const T*>(f.gains), *const gain_hh = gain_ih + GH;
  const T* const bias_ih = static_cast<const T*>(f.bias_ih);
  const T* const bias_hh = static_cast<const T*>(f.bias_hh);
  const Index slots = extras.slots<Cell>();  // then those of the two products
  T* const kept_row = f.reserve ? static_cast<T*>(f.reserve) + row * (slots + 2 * G) * H : nullptr;
  const T* const running = static_cast<const T*>(f.running) + sequence * H;
  const auto states_before = [&](Index unit, Packet<T, Width>(&before)[S]) {
    load_blocks<S>(reset ? nullptr : running + unit, f.batch * H, before);
  };
  // Of a cell of two states: its own reserve and c, until c's moments are known.
  V* const inner_row = inner + sequence * (R + 1) * H;

  Moments<V> of[2];
  find_moments<Width>({x_row, h_row}, {GH, GH}, of, shared);
  each_packet<Width>(H, [&](Index unit) {
    P x_proj[G], h_proj[G], gains_x[G], gains_h[G], biases_x[G], biases_h[G], before[S], kept[R];
    load_blocks<G>(x_row + unit, H, x_proj);
    load_blocks<G>(h_row ? h_row + unit : nullptr, H, h_proj);
    load_blocks<G>(gain_ih + unit, H, gains_x);
    load_blocks<G>(gain_hh + unit, H, gains_h);
    load_blocks<G>(bias_ih ? bias_ih + unit : nullptr, H, biases_x);
    load_blocks<G>(bias_hh ? bias_hh + unit : nullptr, H, biases_h);
    states_before(unit, before);
    NextStates<T, Cell, Width> states{f, extras, step, sequence, unit};
    Packet<V, Width> held[R + 1];
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      V x[G], h[G], prev[S], next[S], reserve[R];
#pragma unroll
      for (int g = 0; g < G; ++g) {
        x[g] = of[0].normalised(x_proj[g].get(i)) * gains_x[g].get(i) + biases_x[g].get(i);
        h[g] = of[1].normalised(h_proj[g].get(i)) * gains_h[g].get(i) + biases_h[g].get(i);
      }
#pragma unroll
      for (int s = 0; s < S; ++s) prev[s] = before[s].get(i);
      Cell::forward(x, h, prev, next, reserve);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        kept[r].set(i, reserve[r]);
        if constexpr (S > 1) held[r].values[i] = reserve[r];
      }
      if constexpr (S > 1)
        held[R].values[i] = next[S - 1];
      else
        states.set(i, prev, next);
    }
    if constexpr (S > 1)
      store_blocks<R + 1>(held, H, inner_row + unit);
    else
      states.write(kept_row ? kept_row + unit : nullptr);
    if (!kept_row) return;
    store_blocks<R>(kept, H, kept_row + unit);
    store_blocks<G>(h_proj, H, kept_row + slots * H + unit);
    store_blocks<G>(x_proj, H, kept_row + (slots + G) * H + unit);
  });
  if constexpr (S > 1) {
    const V* const c_row = inner_row + R * H;
    const T *const gain_c = gain_hh + GH, *const bias_c = gain_c + H;
    Moments<V> of_c[1];
    find_moments<Width>({c_row}, {H}, of_c, shared + 4 * row_warps);
    each_packet<Width>(H, [&](Index unit) {
      const P gains = load<T, Width>(gain_c + unit), biases = load<T, Width>(bias_c + unit);
      P before[S];
      states_before(unit, before);
      Packet<V, Width> held[R + 1];
      load_blocks<R + 1>(static_cast<const V*>(inner_row) + unit, H, held);
      NextStates<T, Cell, Width> states{f, extras, step, sequence, unit};
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        V reserve[R], prev[S], next[S];
#pragma unroll
        for (int r = 0; r < R; ++r) reserve[r] = held[r].values[i];
#pragma unroll
        for (int s = 0; s < S; ++s) prev[s] = before[s].get(i);
        next[1] = held[R].values[i];
        next[0] = Cell::output(reserve, of_c[0].normalised(next[1]) * gains.get(i) + biases.get(i));
        states.set(i, prev, next);
      }
      states.write(kept_row ? kept_row + unit : nullptr);
    });
  }
}

}  // namespace fastrnn::cuda
