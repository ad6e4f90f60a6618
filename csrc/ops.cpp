// The operators on CPU tensors, on torch's stable ABI; `fastrnn/_schemas.py` holds their schemas.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "device.h"
#include "passes.h"
#include "plan.h"
#include "recurrence_ops.h"
#include "stack.h"

namespace fastrnn {

namespace {

// Makes passes on CPUs and runs them.
struct Runner {
  explicit Runner(const Tensor&) {}

  ForwardPass forward(const Inputs& in, const Extras& extras, const std::string& cell, bool reverse,
                      bool save) const {
    return {in, extras, cell, reverse, save};
  }
  BackwardPass backward(const Inputs& in, const Extras& extras, const Saved& saved,
                        const std::string& cell, bool reverse, bool input_grad,
                        bool weight_grad) const {
    return {in, extras, saved, cell, reverse, input_grad, true, weight_grad};
  }
  template <class Pass>
  void run(const Pass& pass) const {
    fastrnn::run(pass);
  }
  // Each direction on half of the threads: they wait for one another once, not in every step.
  template <class Pass>
  void run(const Pass& one, const Pass& other) const {
    run_both(one, other);
  }
  const Gradients& finished(const BackwardPass& pass) const { return pass.grads; }
};

using Ops = RecurrenceOps<Runner>;

std::vector<Tensor> recurrence_stack(const Tensor& input, const std::vector<Tensor>& layers,
                                     const Tensor& batch_sizes, const std::optional<Tensor>& resets,
                                     const Text& cell, bool bias, bool save) {
  const Stack stack(layers, batch_sizes, cell, bias);
  std::vector<Tensor> results;
  Tensor rows = input;
  for (std::size_t k = 0; k < stack.layers; ++k) {
    const Inputs in = stack.inputs(k, rows);
    const ForwardPass pass(in, checked_extras(in, resets, {}, {}, {}), cell, false, save);
    run(pass);
    results.insert(results.end(), {pass.output, pass.state_n, pass.cells, pass.reserve});
    rows = pass.output;
  }
  return results;
}

std::vector<Tensor> recurrence_stack_backward(
    const std::optional<Tensor>& grad_output, const std::optional<Tensor>& grad_cells,
    const std::vector<Tensor>& grad_state_n, const Tensor& input, const std::vector<Tensor>& layers,
    const Tensor& batch_sizes, const std::optional<Tensor>& resets,
    const std::vector<Tensor>& saved, const Text& cell, bool bias, bool input_grad, bool state_grad,
    bool weight_grad) {
  const Stack stack(layers, batch_sizes, cell, bias);
  check_stack_gradients(stack, grad_state_n, saved);
  const std::size_t each = stack.each;
  std::vector<Tensor> results(1 + layers.size(), input);
  std::optional<Tensor> sent = grad_output, of_cells = grad_cells, of_state;
  for (std::size_t k = stack.layers; k-- > 0;) {
    const Inputs in = stack.inputs(k, k > 0 ? saved[3 * k - 3] : input);
    const Extras extras = checked_extras(in, resets, {}, {}, {});
    if (!grad_state_n.empty()) of_state = grad_state_n[k];
    const Saved kept = checked_saved(in, extras, sent, of_state, of_cells, saved[3 * k],
                                     saved[3 * k + 1], saved[3 * k + 2]);
    const BackwardPass pass(in, extras, kept, cell, false, k > 0 || input_grad, state_grad,
                            weight_grad);
    run(pass);
    const Gradients& grads = pass.grads;
    const Tensor of_layer[] = {grads.state, grads.weight_ih, grads.weight_hh, grads.bias_ih,
                               grads.bias_hh};
    std::copy_n(of_layer, each, results.begin() + 1 + k * each);
    sent = results[0] = grads.input;
    of_cells.reset();
  }
  return results;
}

std::string cpu_instruction_set() { return instruction_set().name; }

std::int64_t cpu_allowed(const Text& root) { return processors_allowed(root); }

// Compute capability (two numbers), multiprocessors, bytes of shared memory a block can have,
// clusters of 2, 4, 8 and 16 blocks that run at once, and whether the library holds code for the
// device.
std::vector<std::int64_t> cuda_device(std::int64_t index) {
#ifdef FASTRNN_CUDA
  DeviceFacts facts{};
  const int error = device_probe(int(index), &facts);
  if (error != 0)
    throw std::runtime_error("CUDA device " + std::to_string(index) + ": " +
                             device_error_text(error));
  const auto& [two, four, eight, sixteen] = facts.clusters;
  return {facts.capability_major,
          facts.capability_minor,
          facts.multiprocessors,
          facts.shared_memory_per_block,
          two,
          four,
          eight,
          sixteen,
          facts.has_code};
#else
  throw std::runtime_error("CUDA device " + std::to_string(index) +
                           ": this build has no CUDA kernels");
#endif
}

// The schedule that may run on CUDA devices from now on, or "auto".
void use_cuda_schedule(const Text& name) { cuda::ask_schedule(name); }

// Why a device refused a launch in this process, one of cuda::launch_names; else empty.
std::string cuda_launch_failure(std::int64_t device, const Text& launch) {
  const auto& names = cuda::launch_names;
  const auto found = std::find(names.begin(), names.end(), launch);
  constexpr Checks check{"cuda_launch_failure"};
  check(found != names.end(), "launch must be cluster, grid or layers, got '", launch, "'");
  return cuda::launch_failures(int(device))[std::size_t(found - names.begin())];
}

// Whether products of float32 numbers on CUDA devices may be TF32's from now on.
void use_cuda_tf32(bool allowed) { cuda::allow_tf32(allowed); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("recurrence", TORCH_BOX(&Ops::forward));
  m.impl("recurrence_backward", TORCH_BOX(&Ops::backward));
  m.impl("recurrence_both", TORCH_BOX(&Ops::forward_both));
  m.impl("recurrence_both_backward", TORCH_BOX(&Ops::backward_both));
  m.impl("recurrence_stack", TORCH_BOX(&recurrence_stack));
  m.impl("recurrence_stack_backward", TORCH_BOX(&recurrence_stack_backward));
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&cpu_instruction_set));
  m.impl("cpu_allowed", TORCH_BOX(&cpu_allowed));
  m.impl("cuda_device", TORCH_BOX(&cuda_device));
  m.impl("use_cuda_schedule", TORCH_BOX(&use_cuda_schedule));
  m.impl("cuda_launch_failure", TORCH_BOX(&cuda_launch_failure));
  m.impl("use_cuda_tf32", TORCH_BOX(&use_cuda_tf32));
}

}  // namespace fastrnn
