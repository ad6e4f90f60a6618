// The pointwise kernels of a step, forward: what follows a product with W_hh.
#pragma once

#include "device_rows.h"

namespace fastrnn::cuda {

constexpr int step_threads = 128;

// Where a thread's units begin; the rows are shared out over blockIdx.y.
template <int Width>
__device__ __forceinline__ Index first_unit() {
  return (Index(blockIdx.x) * blockDim.x + threadIdx.x) * Width;
}

// The operand of the second product, for the cells that have one.
template <class T, class Cell, int Width>
__global__ void __launch_bounds__(step_threads)
    step_operand(Forward f, Regularisers extras, Step step, const T* product, T* operands,
                 T* stage) {
  constexpr int G = Cell::gates, first = Cell::operand_gates;
  using V = Sum<T>;
  using P = Packet<T, Width>;
  const Index H = f.hidden_size, unit = first_unit<Width>();
  if (unit >= H) return;
  P bias_ih[first], bias_hh[first];
  load_blocks<first>(f.bias_ih ? static_cast<const T*>(f.bias_ih) + unit : nullptr, H, bias_ih);
  load_blocks<first>(f.bias_hh ? static_cast<const T*>(f.bias_hh) + unit : nullptr, H, bias_hh);
  for (Index sequence = blockIdx.y; sequence < step.rows; sequence += gridDim.y) {
    const Index row = step.row + sequence;
    const bool reset = extras.reset(row);
    P x_proj[first], h_proj[first], prev_h, operand, kept[first];
    load_blocks<first>(static_cast<const T*>(f.x_proj) + row * G * H + unit, H, x_proj);
    load_blocks<first>(product + sequence * first * H + unit, H, h_proj);
    prev_h = load<T, Width>(static_cast<const T*>(f.running) + sequence * H + unit);
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      V x[first], h[first], prev[1] = {reset ? V(0) : prev_h.get(i)}, reserve[first];
#pragma unroll
      for (int g = 0; g < first; ++g) {
        x[g] = x_proj[g].get(i) + bias_ih[g].get(i);
        h[g] = (reset ? V(0) : h_proj[g].get(i)) + bias_hh[g].get(i);
      }
      operand.set(i, Cell::operand(x, h, prev, reserve));
#pragma unroll
      for (int g = 0; g < first; ++g) kept[g].set(i, reserve[g]);
    }
    store(operand, operands + sequence * H + unit);
    T* const to = f.reserve ? static_cast<T*>(f.reserve) + row * extras.slots<Cell>() * H
                            : stage + sequence * first * H;
    store_blocks<first>(kept, H, to + unit);
  }
}

template <class T, class Cell, int Width>
__global__ void __launch_bounds__(step_threads)
    step_forward(Forward f, Regularisers extras, Step step, const T* product, const T* stage) {
  constexpr int G = Cell::gates, S = Cell::states, R = Cell::reserve;
  constexpr int first = Cell::operand_gates, last = G - first;
  using V = Sum<T>;
  using P = Packet<T, Width>;
  const Index H = f.hidden_size, unit = first_unit<Width>(), state_size = f.batch * H;
  if (unit >= H) return;
  const auto bias = [=](const void* base) {
    return base ? static_cast<const T*>(base) + first * H + unit : nullptr;
  };
  P bias_ih[last], bias_hh[last];
  load_blocks<last>(bias(f.bias_ih), H, bias_ih);
  load_blocks<last>(bias(f.bias_hh), H, bias_hh);
  for (Index sequence = blockIdx.y; sequence < step.rows; sequence += gridDim.y) {
    const Index row = step.row + sequence;
    const bool reset = extras.reset(row);
    T* const running = static_cast<T*>(f.running) + sequence * H + unit;
    T* const kept_row =
        f.reserve ? static_cast<T*>(f.reserve) + row * extras.slots<Cell>() * H + unit : nullptr;
    P x_proj[last], h_proj[last], before[S], after[S], made[S], kept[at_least_one<R>];
    load_blocks<last>(static_cast<const T*>(f.x_proj) + (row * G + first) * H + unit, H, x_proj);
    load_blocks<last>(product + sequence * last * H + unit, H, h_proj);
    load_blocks<S>(static_cast<const T*>(running), state_size, before);
    if constexpr (first > 0) {
      P staged[first];
      load_blocks<first>(
          kept_row ? static_cast<const T*>(kept_row) : stage + sequence * first * H + unit, H,
          staged);
#pragma unroll
      for (int r = 0; r < first; ++r) kept[r] = staged[r];
    }
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      V x[last], h[last], prev[S], next[S], reserve[at_least_one<R>];
#pragma unroll
      for (int g = 0; g < last; ++g) {
        x[g] = x_proj[g].get(i) + bias_ih[g].get(i);
        // With an operand, the product of a reset row is one of zeros anyway.
        h[g] = (reset ? V(0) : h_proj[g].get(i)) + bias_hh[g].get(i);
      }
#pragma unroll
      for (int s = 0; s < S; ++s) prev[s] = reset ? V(0) : before[s].get(i);
#pragma unroll
      for (int r = 0; r < first; ++r) reserve[r] = kept[r].get(i);
      Cell::forward(x, h, prev, next, reserve);
#pragma unroll
      for (int s = 0; s < S; ++s) {
        made[s].set(i, next[s]);
        if (extras.zoned)
          next[s] = mixed(prev[s], next[s], extras.kept<V>(s, step.time, sequence, unit + i));
        after[s].set(i, next[s]);
      }
#pragma unroll
      for (int r = first; r < R; ++r) kept[r].set(i, reserve[r]);
    }
    store_blocks<S>(after, state_size, running);
    store(after[0], static_cast<T*>(f.output) + row * H + unit);
    if (S > 1 && f.cells) store(after[S - 1], static_cast<T*>(f.cells) + row * H + unit);
    if (kept_row)
#pragma unroll
      for (int r = first; r < R; ++r) store(kept[r], kept_row + r * H);
    if (kept_row && extras.zoned) store_blocks<S>(made, H, kept_row + R * H);
  }
}

}  // namespace fastrnn::cuda
