// A layer's passes on CPUs, and how one or several of them run: what the operators on CPU tensors
// share.
#pragma once

#include <deque>

#include "dispatch.h"
#include "recurrence.h"

namespace fastrnn {

// Multiply-adds of one step for each gate.
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

// Those that run a layer; with `rows`, those of whole rows, which few cells have.
inline const LayerKernels& layer_kernels(const std::string& cell, const Tensor& input, bool rows) {
  if (!rows) return kernels_for(cell, input);
  check.kernel_dtype(input);
  return *instruction_set().row_kernels(cell.c_str(), int(input.element_size()));
}

// A layer's passes, in one direction: the arguments, held while the kernel reads them, and the
// results. `run` takes one pass, `run_both` two of one shape, at once where that is faster.
struct ForwardPass {
  const Inputs in;
  const Extras extras;
  const std::optional<Tensor> packed;  // what Weights made, in place of the weights
  const Tensor output, state_n, cells, reserve;
  const Walk walk;
  const Kernel<Forward>& kernel;
  const Forward arguments;

  // save: the cells and, without packed weights, the reserve.
  ForwardPass(Inputs inputs, const Extras& with, const std::string& cell, bool reverse, bool save,
              const std::optional<Tensor>& weights = {});
  ForwardPass(const ForwardPass&) = delete;
};

struct BackwardPass {
  const Inputs in;
  const Extras extras;
  const Saved saved;
  const Gradients grads;
  const Walk walk;
  const Kernel<Backward>& kernel;
  const Backward arguments;

  BackwardPass(Inputs inputs, const Extras& with, const Saved& kept, const std::string& cell,
               bool reverse, bool input_grad, bool state_grad, bool weight_grad);
  BackwardPass(const BackwardPass&) = delete;
};

inline void without_rows(const ForwardPass&) {}
inline void without_rows(const BackwardPass& pass) { no_rows(pass.grads, pass.saved.grad_state_n); }

template <class Pass>
void run(const Pass& pass) {
  if (pass.in.rows == 0) return without_rows(pass);
  run(pass.kernel, pass.arguments, step_work(pass.arguments));
}

// Whether passes of so many multiply-adds each are worth more threads than they have alone: those
// that sleep take some 100 us to wake.
inline bool worth_threads(std::int64_t work) {
  constexpr std::int64_t least = 1 << 20;
  return work >= least && most_threads() > 1;
}

template <class Pass>
void run_both(const Pass& first, const Pass& second) {
  const Inputs& in = first.in;
  const std::int64_t numbers = in.sizes.gates * in.hidden_size * in.hidden_size;
  const std::int64_t bytes = 2 * numbers * std::int64_t(in.input.element_size());
  // Weights that come from memory in every step are read faster by all threads in turn.
  constexpr std::int64_t cached_weights = 16 << 20;
  if (bytes > cached_weights || !worth_threads(in.rows * numbers)) return run(first), run(second);
  const int threads = std::max(useful_threads(2 * step_work(first.arguments)), 2);
  run_each(first.kernel, std::vector{first.arguments, second.arguments}, threads);
}

// Passes of padded layers at once, each of which reads what the one before it makes, and each on as
// many threads as it would have alone.
template <class Pass>
void run_wave(const std::deque<Pass>& passes) {
  const int count = int(passes.size());
  std::vector<Progress> progress(count - 1);
  std::vector each{passes[0].arguments};
  for (int i = 1; i < count; ++i) {
    each.push_back(passes[i].arguments);
    each[i].source = each[i - 1].progress = &progress[i - 1];
  }
  run_each(passes[0].kernel, each, count * useful_threads(step_work(each[0])));
}

}  // namespace fastrnn
