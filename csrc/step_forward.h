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

// Some units of a row's states after its step: as the step made them, and as zoneout leaves them.
template <class T, class Cell, int Width>
struct NextStates {
  static constexpr int S = Cell::states;
  const Forward& f;
  const Regularisers& extras;
  const Step& step;
  Index sequence, unit;
  Packet<T, Width> made[S], left[S];

  __device__ __forceinline__ void set(int i, const Sum<T>* prev, Sum<T>* next) {
#pragma unroll
    for (int s = 0; s < S; ++s) {
      made[s].set(i, next[s]);
      if (extras.zoned)
        next[s] = mixed(prev[s], next[s], extras.kept<Sum<T>>(s, step.time, sequence, unit + i));
      left[s].set(i, next[s]);
    }
  }

  // kept: where the row's reserve has these units, or null. step_project moves a projected h on.
  __device__ __forceinline__ void write(T* kept) const {
    const Index H = f.hidden_size, row = step.row + sequence, at = sequence * H + unit;
    T* const running = static_cast<T*>(f.running) + at;
    if (f.projected) {
      store(made[0], static_cast<T*>(f.unprojected) + at);
    } else {
      store(left[0], running);
      store(left[0], static_cast<T*>(f.output) + row * H + unit);
    }
    if constexpr (S > 1) {
      store(left[1], running + f.batch * H);
      if (f.cells) store(left[1], static_cast<T*>(f.cells) + row * H + unit);
    }
    if (kept && extras.keeps_states) store_blocks<S>(made, H, kept + Cell::reserve * H);
  }
};

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
    P x_proj[last], h_proj[last], before[S], kept[at_least_one<R>];
    NextStates<T, Cell, Width> states{f, extras, step, sequence, unit};
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
      states.set(i, prev, next);
#pragma unroll
      for (int r = first; r < R; ++r) kept[r].set(i, reserve[r]);
    }
    states.write(kept_row);
    if (kept_row)
#pragma unroll
      for (int r = first; r < R; ++r) store(kept[r], kept_row + r * H);
  }
}

// The state h, which a product has projected.
template <class T, int Width>
__global__ void __launch_bounds__(step_threads)
    step_project(Forward f, Regularisers extras, Step step, const T* product) {
  using V = Sum<T>;
  const Index P = f.projected, unit = first_unit<Width>();
  if (unit >= P) return;
  for (Index sequence = blockIdx.y; sequence < step.rows; sequence += gridDim.y) {
    const Index row = step.row + sequence;
    T* const running = static_cast<T*>(f.running) + sequence * f.hidden_size + unit;
    auto h = load<T, Width>(product + sequence * P + unit);
    if (extras.zoned) {
      const auto before = load<T, Width>(running);
      const bool reset = extras.reset(row);
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        const V share = extras.kept<V>(0, step.time, sequence, unit + i);
        h.set(i, mixed(reset ? V(0) : before.get(i), h.get(i), share));
      }
    }
    store(h, running);
    store(h, static_cast<T*>(f.output) + row * P + unit);
  }
}

}  // namespace fastrnn::cuda
