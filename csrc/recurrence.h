// The recurrence operators' arguments, checked, and the walk over packed rows; shared by devices.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cell_sizes.h"
#include "checks.h"
#include "kernels_cpu.h"

namespace fastrnn {

constexpr Checks check{"recurrence"};

// Of a compiled cell, checked.
const CellSizes& cell_sizes(const std::string& cell);

// One layer's inputs, contiguous and checked against each other. The weights are absent where
// packed ones stand in for them.
struct Inputs {
  Tensor input, state;
  std::optional<Tensor> weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, gains;
  std::vector<std::int64_t> batch_sizes;
  std::int64_t rows, batch, input_size, hidden_size;
  std::int64_t projected;  // P, or 0 without an output projection
  CellSizes sizes;
  std::int64_t output_size() const { return projected ? projected : hidden_size; }
};

Inputs checked_inputs(const Tensor& input, const Tensor& state,
                      const std::optional<Tensor>& weight_ih,
                      const std::optional<Tensor>& weight_hh, const std::optional<Tensor>& bias_ih,
                      const std::optional<Tensor>& bias_hh, const std::optional<Tensor>& weight_hr,
                      const std::optional<Tensor>& gains, const Tensor& batch_sizes,
                      const std::string& cell);
Inputs checked_inputs(const Tensor& input, const Tensor& state,
                      const std::optional<Tensor>& weight_ih,
                      const std::optional<Tensor>& weight_hh, const std::optional<Tensor>& bias_ih,
                      const std::optional<Tensor>& bias_hh, const std::optional<Tensor>& weight_hr,
                      const std::optional<Tensor>& gains, std::vector<std::int64_t> batch_sizes,
                      const std::string& cell);

// The inputs of a layer's two directions.
void check_both(const Inputs& one, const Inputs& other);

// P of weight_hr [P, H], checked.
std::int64_t projected_size(const Tensor& weight_hr, const std::string& cell,
                            std::int64_t hidden_size);

// What may act inside a step besides the cell, checked against the inputs.
struct Extras {
  std::optional<Tensor> resets, seed, sequences;  // held while the kernels read them
  Zoneout zoneout;                                // as the CPU kernels take it
  const bool* reset_rows() const { return resets ? resets->const_data_ptr<bool>() : nullptr; }
};

Extras checked_extras(const Inputs& inputs, const std::optional<Tensor>& resets,
                      const std::optional<Tensor>& seed, const std::optional<Tensor>& sequences,
                      const std::vector<double>& zoneout);

// Reserve slots of a row: with zoneout or an output projection, also the states they acted on; with
// layer normalisation also the state's projection and the input's.
std::int64_t reserve_slots(const Inputs& inputs, const Extras& extras);

// A backward pass's other inputs, contiguous and checked.
struct Saved {
  std::optional<Tensor> grad_output, grad_state_n, grad_cells;
  Tensor output, cells, reserve;
};
Saved checked_saved(const Inputs& inputs, const Extras& extras,
                    const std::optional<Tensor>& grad_output,
                    const std::optional<Tensor>& grad_state_n,
                    const std::optional<Tensor>& grad_cells, const Tensor& output,
                    const Tensor& cells, const Tensor& reserve);

// A backward pass's results, allocated; one that nobody wants is an empty tensor.
struct Gradients {
  Tensor input, state, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, gains;
  using Tuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
  // The projection's gradient, which a pass without weight_ih makes, is left out if nobody wants
  // it.
  Tuple tuple(bool input_grad) const;
};
// Those of one direction without weight_hr and gains, which it has not, then the other's.
using BothGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                                 Tensor, Tensor, Tensor, Tensor>;
BothGradients of_both(const Gradients& one, const Gradients& other);
Gradients empty_gradients(const Inputs& inputs, bool input_grad, bool state_grad, bool weight_grad);
// Of a batch without rows.
void no_rows(const Gradients& gradients, const std::optional<Tensor>& grad_state_n);

// Where a tensor's elements are; null for an absent or empty one.
const void* data(const std::optional<Tensor>& tensor);
void* writable(const std::optional<Tensor>& tensor);

// The steps of a sequence in the order they run.
struct Walk {
  // resets: [N] or null.
  Walk(const std::vector<std::int64_t>& batch_sizes, bool reverse, const bool* resets);
  std::vector<Segment> segments;
  std::vector<std::int64_t> step_begin;
};

}  // namespace fastrnn
