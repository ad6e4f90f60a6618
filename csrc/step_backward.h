// The pointwise kernels of a step, backward: what comes before a product with W_hh.
#pragma once

#include "device_rows.h"
#include "step_forward.h"

namespace fastrnn::cuda {

// Where the states before and after a row's step are.
template <class T>
struct RowStates {
  const Backward& b;
  const Step& step;
  Index sequence;

  __device__ __forceinline__ const T* before(int state) const {
    const Index H = b.hidden_size;
    if (sequence >= step.prev_rows)
      return static_cast<const T*>(b.state) + (state * b.batch + sequence) * H;
    return of_row(state, step.prev_row + sequence);
  }
  __device__ __forceinline__ const T* after(int state) const {
    return of_row(state, step.row + sequence);
  }

 private:
  __device__ __forceinline__ const T* of_row(int state, Index row) const {
    return static_cast<const T*>(state == 0 ? b.output : b.cells) + row * b.hidden_size;
  }
};

// The gradient that reaches some units of a state after a row's step.
template <class T, int Width>
struct Arriving {
  using V = Sum<T>;
  const Backward& b;
  const Regularisers& extras;
  const Step& step;
  Index sequence;
  const T* product;  // [B, O]: the part of h's that the step after this one sends

  // `grad` goes on through the step, `past` around it, to the state before.
  __device__ __forceinline__ void operator()(int state, Index unit, Packet<V, Width>& grad,
                                             Packet<V, Width>& past) const {
    const Index H = b.hidden_size, O = b.output_size(), row = step.row + sequence;
    const Index at = (state * b.batch + sequence) * H + unit;
    const bool ends = sequence >= step.next_rows;
    const bool cut = !ends && extras.reset(step.next_row + sequence);
    const auto add = [&](const void* from, Index place) {
      if (!from) return;
      const auto more = load<T, Width>(static_cast<const T*>(from) + place);
#pragma unroll
      for (int i = 0; i < Width; ++i) grad.values[i] += more.get(i);
    };
    grad = past = Packet<V, Width>{};
    if (!ends && !cut) grad = load<V, Width>(static_cast<const V*>(b.carry) + at);
    if (ends) add(b.grad_state_n, at);
    if (state == 0 && !ends && !cut) add(product, sequence * O + unit);
    if (state == 0)
      add(b.grad_output, row * O + unit);
    else
      add(b.grad_cells, row * H + unit);
    if (!extras.zoned) return;
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      const V share = extras.kept<V>(state, step.time, sequence, unit + i);
      past.values[i] = around(grad.values[i], share);
      grad.values[i] = through(grad.values[i], share);
    }
  }
};

// Of a projected h, `product` is the gradient.
template <class T, class Cell, int Width>
__global__ void __launch_bounds__(step_threads)
    step_backward(Backward b, Regularisers extras, Step step, const T* product) {
  constexpr int G = Cell::gates, S = Cell::states, R = Cell::reserve;
  using V = Sum<T>;
  using P = Packet<T, Width>;
  const Index H = b.hidden_size, unit = first_unit<Width>(), state_size = b.batch * H;
  if (unit >= H) return;
  const int own = S > 1 && b.projected ? 1 : 0;  // the states that begin here
  for (Index sequence = blockIdx.y; sequence < step.rows; sequence += gridDim.y) {
    const Index row = step.row + sequence;
    const bool reset = extras.reset(row);
    const RowStates<T> states{b, step, sequence};
    const Arriving<T, Width> arriving{b, extras, step, sequence, product};
    P kept[at_least_one<R>], before[S], after[S], grad_x[G], grad_h[G];
    Packet<V, Width> grad_next[S], past[S];
    const T* const reserve_row =
        static_cast<const T*>(b.reserve) + row * extras.slots<Cell>() * H + unit;
    load_blocks<R>(reserve_row, H, kept);
#pragma unroll
    for (int s = 0; s < S; ++s) {
      after[s] =
          load<T, Width>(extras.keeps_states ? reserve_row + (R + s) * H : states.after(s) + unit);
      if (s >= own) {
        arriving(s, unit, grad_next[s], past[s]);
        before[s] = load<T, Width>(states.before(s) + unit);
        continue;
      }
      const P sent = load<T, Width>(product + sequence * H + unit);
#pragma unroll
      for (int i = 0; i < Width; ++i) grad_next[s].values[i] = sent.get(i);
      past[s] = Packet<V, Width>{}, before[s] = P{};
    }
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      V reserve[at_least_one<R>], prev[S], next[S], grad[S];
#pragma unroll
      for (int r = 0; r < R; ++r) reserve[r] = kept[r].get(i);
#pragma unroll
      for (int s = 0; s < S; ++s) {
        prev[s] = reset ? V(0) : before[s].get(i);
        next[s] = after[s].get(i);
        grad[s] = grad_next[s].values[i];
      }
      V to_x[G], to_h[G], to_prev[S];
      Cell::backward(reserve, prev, next, grad, to_x, to_h, to_prev);
#pragma unroll
      for (int g = 0; g < G; ++g) {
        grad_x[g].set(i, to_x[g]);
        if constexpr (!device::shared_gradients<Cell>) grad_h[g].set(i, to_h[g]);
      }
#pragma unroll
      for (int s = 0; s < S; ++s) past[s].values[i] += to_prev[s];
      before[0].set(i, prev[0]);
    }
    store_blocks<G>(grad_x, H, static_cast<T*>(b.grad_x) + row * G * H + unit);
    if constexpr (!device::shared_gradients<Cell>)
      store_blocks<G>(grad_h, H, static_cast<T*>(b.grad_h) + row * G * H + unit);
#pragma unroll
    for (int s = 0; s < S; ++s)
      if (s >= own) store(past[s], static_cast<V*>(b.carry) + s * state_size + sequence * H + unit);
    if (b.previous && own == 0) store(before[0], static_cast<T*>(b.previous) + row * H + unit);
  }
}

// What comes before the product with W_hr: the gradient of a projected h.
template <class T, int Width>
__global__ void __launch_bounds__(step_threads)
    step_project_backward(Backward b, Regularisers extras, Step step, const T* product) {
  using V = Sum<T>;
  const Index H = b.hidden_size, P = b.projected, unit = first_unit<Width>();
  if (unit >= P) return;
  for (Index sequence = blockIdx.y; sequence < step.rows; sequence += gridDim.y) {
    const Index row = step.row + sequence, at = row * P + unit;
    Packet<V, Width> grad, past;
    Arriving<T, Width>{b, extras, step, sequence, product}(0, unit, grad, past);
    Packet<T, Width> sent, before{};
#pragma unroll
    for (int i = 0; i < Width; ++i) sent.set(i, grad.values[i]);
    store(sent, static_cast<T*>(b.grad_projected) + at);
    store(past, static_cast<V*>(b.carry) + sequence * H + unit);
    if (!b.previous) continue;
    const bool begins = sequence >= step.prev_rows;
    const T* const from = static_cast<const T*>(begins ? b.state : b.output) + unit;
    if (!extras.reset(row))
      before = load<T, Width>(from + (begins ? sequence * H : (step.prev_row + sequence) * P));
    store(before, static_cast<T*>(b.previous) + at);
  }
}

// For a cell with an operand, whose gradient the product is.
template <class T, class Cell, int Width>
__global__ void __launch_bounds__(step_threads)
    step_operand_backward(Backward b, Regularisers extras, Step step, const T* product) {
  constexpr int G = Cell::gates, R = Cell::reserve, first = Cell::operand_gates;
  using V = Sum<T>;
  using P = Packet<T, Width>;
  const Index H = b.hidden_size, unit = first_unit<Width>();
  if (unit >= H) return;
  for (Index sequence = blockIdx.y; sequence < step.rows; sequence += gridDim.y) {
    const Index row = step.row + sequence;
    const bool reset = extras.reset(row);
    V* const carry = static_cast<V*>(b.carry) + sequence * H + unit;
    T* const grad_row = static_cast<T*>(b.grad_x) + row * G * H + unit;
    P kept[R], grad_x[first], operand;
    load_blocks<first>(static_cast<const T*>(grad_row), H, grad_x);
    const T* const reserve_row =
        static_cast<const T*>(b.reserve) + row * extras.slots<Cell>() * H + unit;
    load_blocks<R>(reserve_row, H, kept);
    const P before = load<T, Width>(RowStates<T>{b, step, sequence}.before(0) + unit);
    const P grad_operand = load<T, Width>(product + sequence * H + unit);
    Packet<V, Width> grad_prev = load<V, Width>(carry);
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      V reserve[R], prev[1] = {reset ? V(0) : before.get(i)}, to_x[first];
#pragma unroll
      for (int r = 0; r < R; ++r) reserve[r] = kept[r].get(i);
#pragma unroll
      for (int g = 0; g < first; ++g) to_x[g] = grad_x[g].get(i);
      V to_prev[1] = {grad_prev.values[i]};
      operand.set(i, Cell::operand_backward(reserve, prev, grad_operand.get(i), to_x, to_prev));
#pragma unroll
      for (int g = 0; g < first; ++g) grad_x[g].set(i, to_x[g]);
      grad_prev.values[i] = to_prev[0];
    }
    store_blocks<first>(grad_x, H, grad_row);
    store(grad_prev, carry);
    store(operand, static_cast<T*>(b.operand) + row * H + unit);
  }
}

// The initial states' gradient, of the sequences that begin at this step.
template <class T, int States, int Width>
__global__ void __launch_bounds__(step_threads)
    step_begin(Backward b, Regularisers extras, Step step, const T* product) {
  using V = Sum<T>;
  const Index H = b.hidden_size, O = b.output_size();
  const Index unit = first_unit<Width>(), state_size = b.batch * H;
  if (unit >= H) return;
  for (Index sequence = step.prev_rows + blockIdx.y; sequence < step.rows; sequence += gridDim.y) {
    const bool cut = extras.reset(step.row + sequence), of_h = !cut && unit < O;
    const Index at = sequence * H + unit;
    Packet<T, Width> sent{};
    if (of_h) sent = load<T, Width>(product + sequence * O + unit);
#pragma unroll
    for (int s = 0; s < States; ++s) {
      Packet<V, Width> grad{};
      if (s == 0 ? of_h : !cut)
        grad = load<V, Width>(static_cast<const V*>(b.carry) + s * state_size + at);
      Packet<T, Width> out;
#pragma unroll
      for (int i = 0; i < Width; ++i) out.set(i, grad.values[i] + (s == 0 ? sent.get(i) : V(0)));
      store(out, static_cast<T*>(b.grad_state) + s * state_size + at);
    }
  }
}

}  // namespace fastrnn::cuda
