// The step schedule: its launches, for every cell and dtype.
#include <cstring>

#include "step_backward.h"
#include "step_forward.h"
#include "step_shape.h"

namespace fastrnn::cuda {
namespace {

template <class T, class Cell>
struct Launches {
  static constexpr int W = wide_units<T>;

  static const T* typed(const void* p) { return static_cast<const T*>(p); }

  static int forward(const Forward& f, const Step& step, const void* product, const void* stage,
                     void* stream) {
    if (step.rows == 0) return 0;
    const Shape<T> shape(step.rows, f.hidden_size, all_aligned<T>(f) && aligned(product, stage));
    const auto kernel = shape.wide ? step_forward<T, Cell, W> : step_forward<T, Cell, 1>;
    return launch(kernel, shape.grid(step_threads), stream, f, Regularisers(f), step,
                  typed(product), typed(stage));
  }

  static int operand(const Forward& f, const Step& step, const void* product, void* operands,
                     void* stage, void* stream) {
    if (step.rows == 0) return 0;
    const Shape<T> shape(step.rows, f.hidden_size,
                         all_aligned<T>(f) && aligned(product, operands, stage));
    const auto kernel = shape.wide ? step_operand<T, Cell, W> : step_operand<T, Cell, 1>;
    return launch(kernel, shape.grid(step_threads), stream, f, Regularisers(f), step,
                  typed(product), static_cast<T*>(operands), static_cast<T*>(stage));
  }

  static int backward(const Backward& b, const Step& step, const void* product, void* stream) {
    if (step.rows == 0) return 0;
    const Shape<T> shape(step.rows, b.hidden_size, all_aligned<T>(b) && aligned(product));
    const auto kernel = shape.wide ? step_backward<T, Cell, W> : step_backward<T, Cell, 1>;
    return launch(kernel, shape.grid(step_threads), stream, b, Regularisers(b), step,
                  typed(product));
  }

  static int operand_backward(const Backward& b, const Step& step, const void* product,
                              void* stream) {
    if (step.rows == 0) return 0;
    const Shape<T> shape(step.rows, b.hidden_size, all_aligned<T>(b) && aligned(product));
    const auto kernel =
        shape.wide ? step_operand_backward<T, Cell, W> : step_operand_backward<T, Cell, 1>;
    return launch(kernel, shape.grid(step_threads), stream, b, Regularisers(b), step,
                  typed(product));
  }

  static int begin(const Backward& b, const Step& step, const void* product, void* stream) {
    if (step.rows == step.prev_rows) return 0;
    constexpr int S = Cell::states;
    const Shape<T> shape(step.rows - step.prev_rows, b.hidden_size,
                         all_aligned<T>(b) && aligned(product));
    const auto kernel = shape.wide ? step_begin<T, S, W> : step_begin<T, S, 1>;
    return launch(kernel, shape.grid(step_threads), stream, b, Regularisers(b), step,
                  typed(product));
  }

  static int project(const Forward& f, const Step& step, const void* product, void* stream) {
    if (step.rows == 0) return 0;
    const Shape<T> shape(step.rows, f.projected, all_aligned<T>(f) && aligned(product));
    const auto kernel = shape.wide ? step_project<T, W> : step_project<T, 1>;
    return launch(kernel, shape.grid(step_threads), stream, f, Regularisers(f), step,
                  typed(product));
  }

  static int project_backward(const Backward& b, const Step& step, const void* product,
                              void* stream) {
    if (step.rows == 0) return 0;
    const Shape<T> shape(step.rows, b.projected, all_aligned<T>(b) && aligned(product));
    const auto kernel = shape.wide ? step_project_backward<T, W> : step_project_backward<T, 1>;
    return launch(kernel, shape.grid(step_threads), stream, b, Regularisers(b), step,
                  typed(product));
  }

  static constexpr StepKernels table() {
    StepKernels kernels{Cell::gates,
                        Cell::states,
                        Cell::reserve,
                        Cell::operand_gates,
                        device::shared_gradients<Cell>,
                        forward,
                        nullptr,
                        backward,
                        nullptr,
                        begin,
                        nullptr,
                        nullptr};
    if constexpr (Cell::operand_gates > 0)
      kernels.operand = operand, kernels.operand_backward = operand_backward;
    if constexpr (Cell::states > 1)
      kernels.project = project, kernels.project_backward = project_backward;
    return kernels;
  }
};

template <class T, class Cell>
constexpr StepKernels kernels = Launches<T, Cell>::table();

template <class Cell>
const StepKernels* of_cell(Dtype dtype) {
  return of_dtype(dtype, []<class T>() { return &kernels<T, Cell>; });
}

}  // namespace

const StepKernels* step_kernels(const char* cell, Dtype dtype) {
  const auto is = [cell](const char* name) { return std::strcmp(cell, name) == 0; };
  if (is("lstm")) return of_cell<device::Lstm>(dtype);
  if (is("gru")) return of_cell<device::Gru>(dtype);
  if (is("gru_reset_before")) return of_cell<device::GruResetBefore>(dtype);
  if (is("rnn_tanh")) return of_cell<device::RnnTanh>(dtype);
  if (is("rnn_relu")) return of_cell<device::RnnRelu>(dtype);
  return nullptr;
}

}  // namespace fastrnn::cuda
