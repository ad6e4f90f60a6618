// Recurrences that need whole rows of a step: layer normalisation, projection of h. Built once per
// instruction set (FASTRNN_ISA).
#include <cstring>

#include "rows_backward_cpu.h"
#include "rows_forward_cpu.h"

namespace fastrnn::FASTRNN_ISA {

template <class T, class Cell>
constexpr LayerKernels row_kernels_of = {kernel<RowsForward<T, Cell>, Forward>,
                                         kernel<RowsBackward<T, Cell>, Backward>};

template <class Cell>
const LayerKernels* of_dtype(int bytes) {
  return bytes == 4 ? &row_kernels_of<float, Cell> : &row_kernels_of<double, Cell>;
}

const LayerKernels* row_kernels(const char* cell, int dtype_bytes) {
  if (std::strcmp(cell, "lstm") == 0) return of_dtype<Lstm>(dtype_bytes);
  if (std::strcmp(cell, "gru") == 0) return of_dtype<Gru>(dtype_bytes);
  return nullptr;
}

}  // namespace fastrnn::FASTRNN_ISA
