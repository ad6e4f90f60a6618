// The step schedule: its launches, for every cell and dtype.
#include <cstring>

#include "step_backward.h"
#include "step_forward.h"

// A thread takes 16 bytes of a row where that leaves at least so many threads; else one unit, as
// few threads would leave most of the device idle (B = 20, H = 650: 1,625 of them or 13,000).
#ifndef FASTRNN_WIDE_FROM
#define FASTRNN_WIDE_FROM 16384
#endif

namespace fastrnn::cuda {
namespace {

template <class... P>
bool aligned(const P*... pointers) {
  return ((reinterpret_cast<std::uintptr_t>(pointers) | ...) & 15) == 0;
}

template <class T>
struct Shape {
  static constexpr int wide_units = 16 / int(sizeof(T));
  Index rows, hidden_size;
  bool wide;

  Shape(Index rows, Index hidden_size, bool pointers_aligned)
      : rows(rows),
        hidden_size(hidden_size),
        wide(pointers_aligned && hidden_size % wide_units == 0 &&
             rows * (hidden_size / wide_units) >= FASTRNN_WIDE_FROM) {}

  Grid grid() const {
    const Index threads = wide ? hidden_size / wide_units : hidden_size;
    const Index warps = (threads < step_threads ? threads + 31 : step_threads) / 32;
    return {unsigned((threads + warps * 32 - 1) / (warps * 32)),
            unsigned(rows < 65535 ? rows : 65535), int(warps * 32)};
  }
};

template <class T, class Cell>
struct Launches {
  static constexpr int W = Shape<T>::wide_units;

  static const T* typed(const void* p) { return static_cast<const T*>(p); }

  static bool all_aligned(const Forward& f) {
    return aligned(f.x_proj, f.bias_ih, f.bias_hh, f.running, f.output, f.cells, f.reserve);
  }
  static bool all_aligned(const Backward& b) {
    return aligned(b.state, b.grad_output, b.grad_state_n, b.grad_cells, b.output, b.cells,
                   b.reserve, b.carry, b.grad_x, b.grad_h, b.grad_state, b.previous, b.operand);
  }

  static int forward(const Forward& f, const Step& step, const void* product, const void* stage,
                     void* stream) {
    if (step.rows == 0) return 0;
    const Shape<T> shape(step.rows, f.hidden_size, all_aligned(f) && aligned(product, stage));
    const auto kernel = shape.wide ? step_forward<T, Cell, W> : step_forward<T, Cell, 1>;
    return launch(kernel, shape.grid(), stream, f, Regularisers(f.extras), step, typed(product),
                  typed(stage));
  }

  static int operand(const Forward& f, const Step& step, const void* product, void* operands,
                     void* stage, void* stream) {
    if (step.rows == 0) return 0;
    const Shape<T> shape(step.rows, f.hidden_size,
                         all_aligned(f) && aligned(product, operands, stage));
    const auto kernel = shape.wide ? step_operand<T, Cell, W> : step_operand<T, Cell, 1>;
    return launch(kernel, shape.grid(), stream, f, Regularisers(f.extras), step, typed(product),
                  static_cast<T*>(operands), static_cast<T*>(stage));
  }

  static int backward(const Backward& b, const Step& step, const void* product, void* stream) {
    if (step.rows == 0) return 0;
    const Shape<T> shape(step.rows, b.hidden_size, all_aligned(b) && aligned(product));
    const auto kernel = shape.wide ? step_backward<T, Cell, W> : step_backward<T, Cell, 1>;
    return launch(kernel, shape.grid(), stream, b, Regularisers(b.extras), step, typed(product));
  }

  static int operand_backward(const Backward& b, const Step& step, const void* product,
                              void* stream) {
    if (step.rows == 0) return 0;
    const Shape<T> shape(step.rows, b.hidden_size, all_aligned(b) && aligned(product));
    const auto kernel =
        shape.wide ? step_operand_backward<T, Cell, W> : step_operand_backward<T, Cell, 1>;
    return launch(kernel, shape.grid(), stream, b, Regularisers(b.extras), step, typed(product));
  }

  static int begin(const Backward& b, const Step& step, const void* product, void* stream) {
    if (step.rows == step.prev_rows) return 0;
    constexpr int S = Cell::states;
    const Shape<T> shape(step.rows - step.prev_rows, b.hidden_size,
                         all_aligned(b) && aligned(product));
    const auto kernel = shape.wide ? step_begin<T, S, W> : step_begin<T, S, 1>;
    return launch(kernel, shape.grid(), stream, b, Regularisers(b.extras), step, typed(product));
  }

  static constexpr StepKernels table() {
    StepKernels kernels{Cell::gates,
                        Cell::states,
                        Cell::reserve,
                        Cell::operand_gates,
                        Cell::shared_gradients,
                        forward,
                        nullptr,
                        backward,
                        nullptr,
                        begin};
    if constexpr (Cell::operand_gates > 0)
      kernels.operand = operand, kernels.operand_backward = operand_backward;
    return kernels;
  }
};

template <class T, class Cell>
constexpr StepKernels kernels = Launches<T, Cell>::table();

template <class Cell>
const StepKernels* of_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::float32:
    case Dtype::tf32:
      return &kernels<float, Cell>;
    case Dtype::float64:
      return &kernels<double, Cell>;
    case Dtype::float16:
      return &kernels<Half, Cell>;
    case Dtype::bfloat16:
      return &kernels<BFloat16, Cell>;
  }
  return nullptr;
}

}  // namespace

const StepKernels* step_kernels(const char* cell, Dtype dtype) {
  const auto is = [cell](const char* name) { return std::strcmp(cell, name) == 0; };
  if (is("lstm")) return of_dtype<device::Lstm>(dtype);
  if (is("gru")) return of_dtype<device::Gru>(dtype);
  if (is("gru_reset_before")) return of_dtype<device::GruResetBefore>(dtype);
  if (is("rnn_tanh")) return of_dtype<device::RnnTanh>(dtype);
  if (is("rnn_relu")) return of_dtype<device::RnnRelu>(dtype);
  return nullptr;
}

}  // namespace fastrnn::cuda
