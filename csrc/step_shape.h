// How the kernels of a step are laid over its rows.
#pragma once

#include "device_rows.h"

// A thread takes 16 bytes of a row where that leaves at least so many threads; else one unit, as
// few threads would leave most of the device idle (B = 20, H = 650: 1,625 of them or 13,000).
#ifndef FASTRNN_WIDE_FROM
#define FASTRNN_WIDE_FROM 16384
#endif

namespace fastrnn::cuda {

// What of.operator()<T>() gives for the T that a dtype's tensors hold.
template <class Of>
auto of_dtype(Dtype dtype, const Of& of) -> decltype(of.template operator()<float>()) {
  switch (dtype) {
    case Dtype::float32:
    case Dtype::tf32:
      return of.template operator()<float>();
    case Dtype::float64:
      return of.template operator()<double>();
    case Dtype::float16:
      return of.template operator()<Half>();
    case Dtype::bfloat16:
      return of.template operator()<BFloat16>();
  }
  return nullptr;
}

template <class T>
constexpr int wide_units = 16 / int(sizeof(T));

template <class... P>
bool aligned(const P*... pointers) {
  return ((reinterpret_cast<std::uintptr_t>(pointers) | ...) & 15) == 0;
}

// Whether every row of h's is, projected or not, in arrays that are.
template <class T>
bool aligned_rows(const Sequence& s) {
  return s.hidden_size % wide_units<T> == 0 && s.projected % wide_units<T> == 0;
}

// Whether every array of a pass is, row by row.
template <class T>
bool all_aligned(const Forward& f) {
  return aligned_rows<T>(f) && aligned(f.x_proj, f.bias_ih, f.bias_hh, f.gains, f.running, f.output,
                                       f.cells, f.reserve, f.unprojected);
}
template <class T>
bool all_aligned(const Backward& b) {
  return aligned_rows<T>(b) &&
         aligned(b.state, b.gains, b.grad_output, b.grad_state_n, b.grad_cells, b.output, b.cells,
                 b.reserve, b.carry, b.grad_x, b.grad_h, b.grad_state, b.previous, b.operand,
                 b.grad_projected);
}

template <class T>
struct Shape {
  Index rows, units;  // units of a row that threads share out
  bool wide;

  Shape(Index rows, Index units, bool aligned)
      : rows(rows),
        units(units),
        wide(aligned && units % wide_units<T> == 0 &&
             rows * (units / wide_units<T>) >= FASTRNN_WIDE_FROM) {}

  // Threads for a row of packets: whole warps, at most `most`.
  int row_threads(int most) const {
    const Index packets = wide ? units / wide_units<T> : units;
    return int(packets < most ? (packets + 31) / 32 * 32 : most);
  }

  // Blocks share a row; rows are shared out over blockIdx.y.
  Grid grid(int most) const {
    const Index packets = wide ? units / wide_units<T> : units, threads = row_threads(most);
    return {unsigned((packets + threads - 1) / threads), unsigned(rows < 65535 ? rows : 65535),
            int(threads)};
  }

  // A block to a row: number blockIdx.y * gridDim.x + blockIdx.x.
  Grid block_rows(int most, Index shared) const {
    constexpr Index columns = 1 << 30;
    return {unsigned(rows < columns ? rows : columns), unsigned((rows + columns - 1) / columns),
            row_threads(most), shared};
  }
};

}  // namespace fastrnn::cuda
