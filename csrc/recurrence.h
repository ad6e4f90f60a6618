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

// What may act inside a step besides the cell, checked against the inputs.
struct Extras {
  std::optional<Tensor> resets, sequences;  // [N] and [B], held while the kernels read them
  Zoneout zoneout;
  const bool* reset_rows() const { return resets ? resets->const_data_ptr<bool>() : nullptr; }
};

Extras checked_extras(const Inputs& inputs, const std::optional<Tensor>& resets,
                      const std::optional<Tensor>& seed, const std::optional<Tensor>& sequences,
                      const std::vector<double>& zoneout);

// The steps of a sequence in the order they run.
struct Walk {
  // resets: [N] or null.
  Walk(const std::vector<std::int64_t>& batch_sizes, bool reverse, const bool* resets);
  std::vector<Segment> segments;
  std::vector<std::int64_t> step_begin;
};

}  // namespace fastrnn
