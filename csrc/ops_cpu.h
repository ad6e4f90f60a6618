// What the operators on CPU tensors share: which kernel runs, on what.
#pragma once

#include "dispatch.h"
#include "recurrence.h"

namespace fastrnn {

// Multiply-adds of one step.
template <class Arguments>
std::int64_t step_work(const Arguments& arguments) {
  return arguments.rows * arguments.hidden_size * arguments.hidden_size / arguments.steps;
}

inline Sequence sequence(const Inputs& in, const Walk& walk, const Extras& extras) {
  return {in.rows,
          in.batch,
          in.input_size,
          in.hidden_size,
          walk.segments.data(),
          walk.step_begin.data(),
          std::int64_t(walk.step_begin.size()) - 1,
          in.input.const_data_ptr(),
          in.state.const_data_ptr(),
          data(in.weight_ih),
          data(in.weight_hh),
          data(in.bias_ih),
          data(in.bias_hh),
          extras.resets.has_value(),
          extras.zoneout,
          in.projected,
          data(in.weight_hr),
          data(in.gains)};
}

inline const CellKernels& kernels_for(const std::string& cell, const Tensor& input) {
  check.kernel_dtype(input, true);
  return *instruction_set().kernels(cell.c_str(), int(input.element_size()));
}

// Those of whole rows, which few cells have.
inline const RowKernels& row_kernels_for(const std::string& cell, const Tensor& input) {
  check.kernel_dtype(input);
  return *instruction_set().row_kernels(cell.c_str(), int(input.element_size()));
}

inline const Kernel<Forward>& forward_for(const std::string& cell, const Tensor& input, bool rows) {
  const CellKernels& kernels = kernels_for(cell, input);
  return rows ? row_kernels_for(cell, input).forward : kernels.forward;
}

// What a forward pass makes.
struct Results {
  Tensor output, state_n, cells, reserve;
};
Results forward(const Inputs& in, const Extras& extras, const std::string& cell, bool reverse,
                bool save);
Gradients backward(const Inputs& in, const Extras& extras, const Saved& saved,
                   const std::string& cell, bool reverse, bool input_grad, bool state_grad,
                   bool weight_grad);
// On weights packed beforehand; no reserve.
Results forward_packed(const Inputs& in, const Extras& extras, const Tensor& packed,
                       const std::string& cell, bool reverse, bool return_cells);

}  // namespace fastrnn
