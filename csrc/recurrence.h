// The recurrence operators' arguments, checked, and the walk over packed rows; shared by devices.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checks.h"
#include "kernels_cpu.h"

namespace fastrnn {

constexpr Checks check{"recurrence"};

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

// The steps of a sequence in the order they run.
struct Walk {
  Walk(const std::vector<std::int64_t>& batch_sizes, bool reverse);
  std::vector<Segment> segments;
  std::vector<std::int64_t> step_begin;
};

}  // namespace fastrnn
