// Both directions of a layer on CPUs, each on half of the threads: they wait for one another once,
// not in every step.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "passes.h"
#include "text.h"

namespace fastrnn {

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> recurrence_both(
    const Tensor& input, const Tensor& state, const Tensor& weight_ih, const Tensor& weight_hh,
    const std::optional<Tensor>& bias_ih, const std::optional<Tensor>& bias_hh,
    const Tensor& state_reverse, const Tensor& weight_ih_reverse, const Tensor& weight_hh_reverse,
    const std::optional<Tensor>& bias_ih_reverse, const std::optional<Tensor>& bias_hh_reverse,
    const Tensor& batch_sizes, const std::optional<Tensor>& resets,
    const std::optional<Tensor>& resets_reverse, const std::optional<Tensor>& seed,
    const std::optional<Tensor>& seed_reverse, const std::optional<Tensor>& sequences,
    const std::vector<double>& zoneout, const Text& cell, bool save) {
  const Inputs in = checked_inputs(input, state, weight_ih, weight_hh, bias_ih, bias_hh, {}, {},
                                   batch_sizes, cell);
  const Inputs back = checked_inputs(in.input, state_reverse, weight_ih_reverse, weight_hh_reverse,
                                     bias_ih_reverse, bias_hh_reverse, {}, {}, batch_sizes, cell);
  check_both(in, back);
  const ForwardPass a(in, checked_extras(in, resets, seed, sequences, zoneout), cell, false, save);
  const ForwardPass b(back, checked_extras(back, resets_reverse, seed_reverse, sequences, zoneout),
                      cell, true, save);
  run_both(a, b);
  return {a.output, a.state_n, a.cells, a.reserve, b.output, b.state_n, b.cells, b.reserve};
}

BothGradients recurrence_both_backward(
    const std::optional<Tensor>& grad_output, const std::optional<Tensor>& grad_state_n,
    const std::optional<Tensor>& grad_cells, const std::optional<Tensor>& grad_output_reverse,
    const std::optional<Tensor>& grad_state_n_reverse,
    const std::optional<Tensor>& grad_cells_reverse, const Tensor& input, const Tensor& state,
    const Tensor& weight_ih, const Tensor& weight_hh, const std::optional<Tensor>& bias_ih,
    const std::optional<Tensor>& bias_hh, const Tensor& state_reverse,
    const Tensor& weight_ih_reverse, const Tensor& weight_hh_reverse,
    const std::optional<Tensor>& bias_ih_reverse, const std::optional<Tensor>& bias_hh_reverse,
    const Tensor& batch_sizes, const std::optional<Tensor>& resets,
    const std::optional<Tensor>& resets_reverse, const std::optional<Tensor>& seed,
    const std::optional<Tensor>& seed_reverse, const std::optional<Tensor>& sequences,
    const std::vector<double>& zoneout, const Tensor& output, const Tensor& cells,
    const Tensor& reserve, const Tensor& output_reverse, const Tensor& cells_reverse,
    const Tensor& reserve_reverse, const Text& cell, bool input_grad, bool weight_grad) {
  const Inputs in = checked_inputs(input, state, weight_ih, weight_hh, bias_ih, bias_hh, {}, {},
                                   batch_sizes, cell);
  const Inputs back = checked_inputs(in.input, state_reverse, weight_ih_reverse, weight_hh_reverse,
                                     bias_ih_reverse, bias_hh_reverse, {}, {}, batch_sizes, cell);
  check_both(in, back);
  const Extras extras = checked_extras(in, resets, seed, sequences, zoneout);
  const Extras extras_back = checked_extras(back, resets_reverse, seed_reverse, sequences, zoneout);
  const BackwardPass a(
      in, extras,
      checked_saved(in, extras, grad_output, grad_state_n, grad_cells, output, cells, reserve),
      cell, false, input_grad, true, weight_grad);
  const BackwardPass b(
      back, extras_back,
      checked_saved(back, extras_back, grad_output_reverse, grad_state_n_reverse,
                    grad_cells_reverse, output_reverse, cells_reverse, reserve_reverse),
      cell, true, input_grad, true, weight_grad);
  run_both(a, b);
  return of_both(a.grads, b.grads);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("recurrence_both", TORCH_BOX(&recurrence_both));
  m.impl("recurrence_both_backward", TORCH_BOX(&recurrence_both_backward));
}

}  // namespace fastrnn
