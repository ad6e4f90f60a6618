// The same backward: what comes before a product with W_hh, and what follows the loop.
#pragma once

#include "norm_rows.h"
#include "step_backward.h"

namespace fastrnn::cuda {

// Where NormBackward's moments of a row are kept.
enum class Normed { x, product, c };
template <class V>
__host__ __device__ __forceinline__ Moments<V>* kept_moments(const NormBackward& b, Normed which) {
  return static_cast<Moments<V>*>(b.moments) + Index(which) * b.rows;
}

template <class T, class Cell, int Width>
__global__ void __launch_bounds__(row_threads)
    norm_backward(NormBackward b, Regularisers extras, Step step, const T* product) {
  constexpr int G = Cell::gates, S = Cell::states, R = Cell::reserve;
  constexpr bool shared_gradients = device::shared_gradients<Cell>;
  using V = Sum<T>;
  using P = Packet<T, Width>;
  FASTRNN_SHARED(V, shared);
  const Index H = b.hidden_size, GH = G * H, sequence = block_row(), row = step.row + sequence;
  if (sequence >= step.rows) return;
  const bool reset = extras.reset(row);
  const RowStates<T> states{b, step, sequence};
  const Arriving<T, Width> arriving{b, extras, step, sequence, product};
  const Index slots = extras.slots<Cell>();
  const T* const kept_row = static_cast<const T*>(b.reserve) + row * (slots + 2 * G) * H;
  const T *const h_row = kept_row + slots * H, *c_row = nullptr;
  const T* const gain_hh = static_cast<const T*>(b.gains) + GH;
  const T *const gain_c = gain_hh + GH, *const bias_c = gain_c + H;  // of a cell of two states
  T* const gates = static_cast<T*>(b.gates) + row * GH;
  T* const gates_h = static_cast<T*>(b.gates_h) + row * GH;
  V* const carry = static_cast<V*>(b.carry) + sequence * H;

  const T* rows[S] = {h_row};
  Index sizes[S] = {GH};
  if constexpr (S > 1) {
    c_row = extras.keeps_states ? kept_row + (R + 1) * H : states.after(1);
    rows[1] = c_row, sizes[1] = H;
  }
  Moments<V> of[S];  // of the product, of c
  find_moments<Width>(rows, sizes, of, shared);
  if (threadIdx.x == 0) {
    kept_moments<V>(b, Normed::product)[row] = of[0];
    if constexpr (S > 1) kept_moments<V>(b, Normed::c)[row] = of[1];
  }

  NormBack<V> of_c, of_h;
  if constexpr (S > 1) {
    each_packet<Width>(H, [&](Index unit) {
      P kept[R], grads[G], grad_c;
      Packet<V, Width> grad_h, past;
      arriving(0, unit, grad_h, past);
      load_blocks<R>(kept_row + unit, H, kept);
      const P c = load<T, Width>(c_row + unit), gains = load<T, Width>(gain_c + unit),
              biases = load<T, Width>(bias_c + unit);
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        V reserve[R], to_x[G] = {};
#pragma unroll
        for (int r = 0; r < R; ++r) reserve[r] = kept[r].get(i);
        const V normalised = of[1].normalised(c.get(i)), gain = gains.get(i);
        const V grad = Cell::output_backward(reserve, normalised * gain + biases.get(i),
                                             grad_h.values[i], to_x);
        of_c.add(grad * gain, normalised);
        grad_c.set(i, grad);
#pragma unroll
        for (int g = 0; g < G; ++g) grads[g].set(i, to_x[g]);
      }
      store_blocks<G>(grads, H, gates + unit);
      store(grad_c, static_cast<T*>(b.grad_c) + row * H + unit);
      store(past, carry + unit);
    });
    block_sum(of_c.sums, shared + 4 * row_warps);
  }
  each_packet<Width>(H, [&](Index unit) {
    P kept[R], h[G], gains[G], before[S], grads_x[G], grads_h[G], c, gains_c, grad_c;
    Packet<V, Width> grad_next, past;
    arriving(S - 1, unit, grad_next, past);
    load_blocks<R>(kept_row + unit, H, kept);
    load_blocks<G>(h_row + unit, H, h);
    load_blocks<G>(gain_hh + unit, H, gains);
#pragma unroll
    for (int s = 0; s < S; ++s) before[s] = reset ? P{} : load<T, Width>(states.before(s) + unit);
    if constexpr (S > 1) {
      load_blocks<G>(static_cast<const T*>(gates) + unit, H, grads_x);
      c = load<T, Width>(c_row + unit), gains_c = load<T, Width>(gain_c + unit);
      grad_c = load<T, Width>(static_cast<const T*>(b.grad_c) + row * H + unit);
    }
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      V reserve[R], prev[S], to_x[G], to_h[G], to_prev[S], grad = grad_next.values[i];
#pragma unroll
      for (int r = 0; r < R; ++r) reserve[r] = kept[r].get(i);
#pragma unroll
      for (int s = 0; s < S; ++s) prev[s] = before[s].get(i);
      if constexpr (S > 1) {
#pragma unroll
        for (int g = 0; g < G; ++g) to_x[g] = grads_x[g].get(i);
        grad += of_c.grad(of[1], H, grad_c.get(i) * gains_c.get(i), of[1].normalised(c.get(i)));
        Cell::cell_backward(reserve, prev, grad, to_x, to_prev);
      } else {
        Cell::backward(reserve, prev, prev, &grad, to_x, to_h, to_prev);
      }
#pragma unroll
      for (int g = 0; g < G; ++g) {
        const V to = shared_gradients ? to_x[g] : to_h[g];
        of_h.add(to * gains[g].get(i), of[0].normalised(h[g].get(i)));
        grads_x[g].set(i, to_x[g]);
        if constexpr (!shared_gradients) grads_h[g].set(i, to);
      }
      past.values[i] += to_prev[S - 1];
    }
    store_blocks<G>(grads_x, H, gates + unit);
    if constexpr (!shared_gradients) store_blocks<G>(grads_h, H, gates_h + unit);
    store(past, carry + (S - 1) * b.batch * H + unit);
    if (b.previous) store(before[0], static_cast<T*>(b.previous) + row * H + unit);
  });
  block_sum(of_h.sums, shared + 6 * row_warps);
  norm_row_backward<Width>(of_h, of[0], GH, h_row, gain_hh, static_cast<const T*>(gates_h),
                           static_cast<T*>(b.grad_h) + row * GH);
}

// After the loop: x_proj's gradient, of all rows. Four blocks at once ask for 64 registers; left to
// itself nvcc takes 32 for sm_100 and spills.
template <class T, class Cell, int Width>
__global__ void __launch_bounds__(row_threads, 4) norm_input(NormBackward b, Regularisers extras) {
  constexpr int G = Cell::gates;
  using V = Sum<T>;
  FASTRNN_SHARED(V, shared);
  const Index H = b.hidden_size, GH = G * H, slots = extras.slots<Cell>(), row = block_row();
  if (row >= b.rows) return;
  const T* const x_row = static_cast<const T*>(b.reserve) + (row * (slots + 2 * G) + slots + G) * H;
  const T* const gain = static_cast<const T*>(b.gains);
  const T* const gates = static_cast<const T*>(b.gates) + row * GH;
  Moments<V> of[1];
  find_moments<Width>({x_row}, {GH}, of, shared);
  if (threadIdx.x == 0) kept_moments<V>(b, Normed::x)[row] = of[0];
  NormBack<V> back;
  each_packet<Width>(GH, [&](Index unit) {
    const auto x = load<T, Width>(x_row + unit), gains = load<T, Width>(gain + unit),
               grads = load<T, Width>(gates + unit);
#pragma unroll
    for (int i = 0; i < Width; ++i)
      back.add(grads.get(i) * gains.get(i), of[0].normalised(x.get(i)));
  });
  block_sum(back.sums, shared + 2 * row_warps);
  norm_row_backward<Width>(back, of[0], GH, x_row, gain, gates,
                           static_cast<T*>(b.grad_x) + row * GH);
}

// The gradients of gain and bias (or null), [columns] each, of y = gain * normalised(x) + bias:
// sums over rows of grad_y [rows, columns] and x, whose rows are `stride` apart. A block has 32
// columns, its warps take the rows in turn.
template <class T>
__global__ void __launch_bounds__(row_threads)
    norm_sums(Index rows, Index columns, const T* grad_y, const T* x, Index stride,
              const Moments<Sum<T>>* moments, T* grad_gain, T* grad_bias) {
  constexpr int summed = 32;  // rows whose sum is taken before it joins that of all
  using V = Sum<T>;
  FASTRNN_SHARED(V, shared);  // [row_warps, 2, 32]
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const Index column = Index(blockIdx.x) * 32 + lane;
  V totals[2] = {V(0), V(0)};
  for (Index row = warp; row < rows && column < columns;) {
    V sums[2] = {V(0), V(0)};
    for (int k = 0; k < summed && row < rows; ++k, row += row_warps) {
      const V grad = widen(grad_y[row * columns + column]);
      sums[0] += grad * moments[row].normalised(widen(x[row * stride + column]));
      sums[1] += grad;
    }
    totals[0] += sums[0], totals[1] += sums[1];
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) shared[(warp * 2 + j) * 32 + lane] = totals[j];
  __syncthreads();
  T* const to = warp == 0 ? grad_gain : warp == 1 ? grad_bias : nullptr;
  if (!to || column >= columns) return;
  V total = V(0);
  for (int other = 0; other < row_warps; ++other) total += shared[(other * 2 + warp) * 32 + lane];
  narrow(total, to + column);
}

}  // namespace fastrnn::cuda
