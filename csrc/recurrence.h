// The recurrence operators' arguments, checked, and the walk over packed rows; shared by devices.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "recurrence_cpu.h"

namespace fastrnn {

using torch::stable::Tensor;

// Throws unless `ok`; the message says what was expected and what came.
template <class... Words>
void check(bool ok, const Words&... words) {
  if (ok) return;
  std::ostringstream message;
  message << "recurrence: ";
  (message << ... << words);
  throw std::runtime_error(message.str());
}

// Number of gates, states and reserve slots by cell name.
struct CellSizes {
  std::int64_t gates, states, reserve;
};
CellSizes cell_sizes(const std::string& cell);

// One layer's inputs, contiguous and checked against each other. The weights are absent where
// packed ones stand in for them.
struct Inputs {
  Tensor input, state;
  std::optional<Tensor> weight_ih, weight_hh, bias_ih, bias_hh;
  std::vector<std::int64_t> batch_sizes;
  std::int64_t rows, batch, input_size, hidden_size;
  CellSizes sizes;
};

Inputs checked_inputs(const Tensor& input, const Tensor& state,
                      const std::optional<Tensor>& weight_ih,
                      const std::optional<Tensor>& weight_hh, const std::optional<Tensor>& bias_ih,
                      const std::optional<Tensor>& bias_hh, const Tensor& batch_sizes,
                      const std::string& cell);

void check_kernel_dtype(const Tensor& tensor);

// `tensor` contiguous, once its shape, dtype and device are `shape` and those of `like`.
Tensor checked(const char* name, const Tensor& tensor, const std::vector<std::int64_t>& shape,
               const Tensor& like);

// The steps of a sequence in the order they run.
struct Walk {
  Walk(const std::vector<std::int64_t>& batch_sizes, bool reverse);
  std::vector<Segment> segments;
  std::vector<std::int64_t> step_begin;
};

}  // namespace fastrnn
