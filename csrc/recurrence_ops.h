// The operators of one layer, in one direction or in both, over passes of any device.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <tuple>
#include <vector>

#include "recurrence.h"
#include "text.h"

namespace fastrnn {

// Autograd looks away while an operator runs: torch's own views and sums inside it would record
// themselves otherwise.
class NoGrad {
 public:
  NoGrad() : before_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(before_); }

 private:
  const bool before_;
};

// Runner: a device's, made for an input. `forward` and `backward` make passes, `run` runs one or
// both of a layer, and `finished` gives a backward pass's gradients.
template <class Runner>
struct RecurrenceOps {
  static std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
      const Tensor& input, const Tensor& state, const std::optional<Tensor>& weight_ih,
      const Tensor& weight_hh, const std::optional<Tensor>& bias_ih,
      const std::optional<Tensor>& bias_hh, const std::optional<Tensor>& weight_hr,
      const std::optional<Tensor>& gains, const Tensor& batch_sizes,
      const std::optional<Tensor>& resets, const std::optional<Tensor>& seed,
      const std::optional<Tensor>& sequences, const std::vector<double>& zoneout, const Text& cell,
      bool reverse, bool save) {
    const NoGrad no_grad;
    const Inputs in = checked_inputs(input, state, weight_ih, weight_hh, bias_ih, bias_hh,
                                     weight_hr, gains, batch_sizes, cell);
    const Extras extras = checked_extras(in, resets, seed, sequences, zoneout);
    const Runner runner(in.input);
    const auto pass = runner.forward(in, extras, cell, reverse, save);
    runner.run(pass);
    return {pass.output, pass.state_n, pass.cells, pass.reserve};
  }

  static Gradients::Tuple backward(
      const std::optional<Tensor>& grad_output, const std::optional<Tensor>& grad_state_n,
      const std::optional<Tensor>& grad_cells, const Tensor& input, const Tensor& state,
      const std::optional<Tensor>& weight_ih, const Tensor& weight_hh,
      const std::optional<Tensor>& bias_ih, const std::optional<Tensor>& bias_hh,
      const std::optional<Tensor>& weight_hr, const std::optional<Tensor>& gains,
      const Tensor& batch_sizes, const std::optional<Tensor>& resets,
      const std::optional<Tensor>& seed, const std::optional<Tensor>& sequences,
      const std::vector<double>& zoneout, const Tensor& output, const Tensor& cells,
      const Tensor& reserve, const Text& cell, bool reverse, bool input_grad, bool weight_grad) {
    const NoGrad no_grad;
    const Inputs in = checked_inputs(input, state, weight_ih, weight_hh, bias_ih, bias_hh,
                                     weight_hr, gains, batch_sizes, cell);
    const Extras extras = checked_extras(in, resets, seed, sequences, zoneout);
    const Saved saved =
        checked_saved(in, extras, grad_output, grad_state_n, grad_cells, output, cells, reserve);
    const Runner runner(in.input);
    auto pass = runner.backward(in, extras, saved, cell, reverse, input_grad, weight_grad);
    runner.run(pass);
    return runner.finished(pass).tuple(input_grad);
  }

  // What `forward` gives for the one direction, then for the other.
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward_both(
      const Tensor& input, const Tensor& state, const Tensor& weight_ih, const Tensor& weight_hh,
      const std::optional<Tensor>& bias_ih, const std::optional<Tensor>& bias_hh,
      const Tensor& state_reverse, const Tensor& weight_ih_reverse, const Tensor& weight_hh_reverse,
      const std::optional<Tensor>& bias_ih_reverse, const std::optional<Tensor>& bias_hh_reverse,
      const Tensor& batch_sizes, const std::optional<Tensor>& resets,
      const std::optional<Tensor>& resets_reverse, const std::optional<Tensor>& seed,
      const std::optional<Tensor>& seed_reverse, const std::optional<Tensor>& sequences,
      const std::vector<double>& zoneout, const Text& cell, bool save) {
    const NoGrad no_grad;
    const Inputs in = checked_inputs(input, state, weight_ih, weight_hh, bias_ih, bias_hh, {}, {},
                                     batch_sizes, cell);
    const Inputs back =
        checked_inputs(in.input, state_reverse, weight_ih_reverse, weight_hh_reverse,
                       bias_ih_reverse, bias_hh_reverse, {}, {}, batch_sizes, cell);
    check_both(in, back);
    const Extras extras = checked_extras(in, resets, seed, sequences, zoneout);
    const Extras extras_back =
        checked_extras(back, resets_reverse, seed_reverse, sequences, zoneout);
    const Runner runner(in.input);
    const auto a = runner.forward(in, extras, cell, false, save);
    const auto b = runner.forward(back, extras_back, cell, true, save);
    runner.run(a, b);
    return {a.output, a.state_n, a.cells, a.reserve, b.output, b.state_n, b.cells, b.reserve};
  }

  static BothGradients backward_both(
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
    const NoGrad no_grad;
    const Inputs in = checked_inputs(input, state, weight_ih, weight_hh, bias_ih, bias_hh, {}, {},
                                     batch_sizes, cell);
    const Inputs back =
        checked_inputs(in.input, state_reverse, weight_ih_reverse, weight_hh_reverse,
                       bias_ih_reverse, bias_hh_reverse, {}, {}, batch_sizes, cell);
    check_both(in, back);
    const Extras extras = checked_extras(in, resets, seed, sequences, zoneout);
    const Extras extras_back =
        checked_extras(back, resets_reverse, seed_reverse, sequences, zoneout);
    const Saved saved =
        checked_saved(in, extras, grad_output, grad_state_n, grad_cells, output, cells, reserve);
    const Saved saved_back =
        checked_saved(back, extras_back, grad_output_reverse, grad_state_n_reverse,
                      grad_cells_reverse, output_reverse, cells_reverse, reserve_reverse);
    const Runner runner(in.input);
    auto a = runner.backward(in, extras, saved, cell, false, input_grad, weight_grad);
    auto b = runner.backward(back, extras_back, saved_back, cell, true, input_grad, weight_grad);
    runner.run(a, b);
    return of_both(runner.finished(a), runner.finished(b));
  }
};

}  // namespace fastrnn
