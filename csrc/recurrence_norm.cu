// Layer normalisation in the step schedule: its launches, for every cell that has it.
#include <cstring>

#include "norm_backward.h"
#include "norm_forward.h"
#include "step_shape.h"

namespace fastrnn::cuda {
namespace {

template <class T, class Cell>
struct Launches {
  using V = Sum<T>;
  static constexpr int W = wide_units<T>, G = Cell::gates;

  // Shared memory for so many sums of a block.
  static Grid blocks(const Shape<T>& shape, int sums) {
    return shape.block_rows(row_threads, sums * row_warps * Index(sizeof(V)));
  }

  static int forward(const Forward& f, const Step& step, const void* product, void* inner,
                     void* stream) {
    if (step.rows == 0) return 0;
    const Shape<T> shape(step.rows, f.hidden_size, all_aligned<T>(f) && aligned(product, inner));
    const auto kernel = shape.wide ? norm_forward<T, Cell, W> : norm_forward<T, Cell, 1>;
    return launch(kernel, blocks(shape, 6), stream, f, Regularisers(f), step,
                  static_cast<const T*>(product), static_cast<V*>(inner));
  }

  static bool all_aligned_too(const NormBackward& b) {
    return all_aligned<T>(b) && aligned(b.gates, b.gates_h, b.grad_c);
  }

  static int backward(const NormBackward& b, const Step& step, const void* product, void* stream) {
    if (step.rows == 0) return 0;
    const Shape<T> shape(step.rows, b.hidden_size, all_aligned_too(b) && aligned(product));
    const auto kernel = shape.wide ? norm_backward<T, Cell, W> : norm_backward<T, Cell, 1>;
    return launch(kernel, blocks(shape, 8), stream, b, Regularisers(b), step,
                  static_cast<const T*>(product));
  }

  // Of the gain at `place` of `gains` and of a bias.
  static int sums(const NormBackward& b, Normed which, Index columns, const void* grad_y,
                  const T* x, Index stride, Index place, void* grad_bias, void* stream) {
    T* const gain = static_cast<T*>(b.grad_gains) + place;
    const Grid grid{unsigned((columns + 31) / 32), 1, row_threads,
                    row_warps * 2 * 32 * Index(sizeof(V))};
    return launch(norm_sums<T>, grid, stream, b.rows, columns, static_cast<const T*>(grad_y), x,
                  stride, kept_moments<V>(b, which), gain, static_cast<T*>(grad_bias));
  }

  static int finish(const NormBackward& b, void* stream) {
    const Regularisers extras(b);
    const Index H = b.hidden_size, GH = G * H;
    const Shape<T> shape(b.rows, H, all_aligned_too(b));
    const auto kernel = shape.wide ? norm_input<T, Cell, W> : norm_input<T, Cell, 1>;
    if (const int error = launch(kernel, blocks(shape, 4), stream, b, extras)) return error;
    if (!b.grad_gains) return 0;
    const Index slots = extras.template slots<Cell>(), stride = (slots + 2 * G) * H;
    const T *const reserve = static_cast<const T*>(b.reserve), *const h = reserve + slots * H;
    int error = sums(b, Normed::x, GH, b.gates, h + GH, stride, 0, b.grad_bias_ih, stream);
    if (!error)
      error = sums(b, Normed::product, GH, b.gates_h, h, stride, GH, b.grad_bias_hh, stream);
    if constexpr (Cell::states > 1) {
      const bool kept = extras.keeps_states;
      const T* const c = kept ? reserve + (Cell::reserve + 1) * H : static_cast<const T*>(b.cells);
      T* const bias = static_cast<T*>(b.grad_gains) + 2 * GH + H;
      if (!error)
        error = sums(b, Normed::c, H, b.grad_c, c, kept ? stride : H, 2 * GH, bias, stream);
    }
    return error;
  }
};

template <class T, class Cell>
constexpr NormKernels kernels{Launches<T, Cell>::forward, Launches<T, Cell>::backward,
                              Launches<T, Cell>::finish};

template <class Cell>
const NormKernels* of_cell(Dtype dtype) {
  return of_dtype(dtype, []<class T>() { return &kernels<T, Cell>; });
}

}  // namespace

const NormKernels* norm_kernels(const char* cell, Dtype dtype) {
  const auto is = [cell](const char* name) { return std::strcmp(cell, name) == 0; };
  if (is("lstm")) return of_cell<device::Lstm>(dtype);
  if (is("gru")) return of_cell<device::Gru>(dtype);
  return nullptr;
}

}  // namespace fastrnn::cuda
