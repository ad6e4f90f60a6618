// The CUDA operators on CPU tensors, in the namespace fastrnn_emulated: *_device.cpp with
// the emulator's kernels (csrc/emulator/) and torch's CPU product in place of a GPU's.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "../csrc/attention_device.h"
#include "../csrc/device_passes.h"

extern "C" const char* emulator_report();

namespace fastrnn::cuda {

namespace {

// What a launch that is refused on purpose gives.
constexpr int refused = -1;

const char* error_text(int error) {
  return error == refused ? "refused by a test" : emulator_report();
}
bool refuses(int error) { return error == refused; }

constexpr int emulated_device = -1;  // the number of a CPU tensor's device

// Launches that the device refuses, by cuda::launch_names.
bool refusing[launch_names.size()];

void refuse_launch(const Text& name, bool refuse) {
  for (std::size_t i = 0; i < launch_names.size(); ++i) {
    if (name != launch_names[i]) continue;
    refusing[i] = refuse;
    remember_failure(emulated_device, i, "");
  }
}

std::string launch_failure(std::int64_t device, std::int64_t launch) {
  return launch_failures(int(device))[std::size_t(launch)];
}

// A schedule's kernels, or those that refuse.
template <std::size_t Launch, auto Kernels>
const PersistentKernels* kernels(const char* cell, Dtype dtype) {
  static constexpr PersistentKernels none{nullptr, [](auto...) { return refused; },
                                          [](auto...) { return refused; }};
  return refusing[Launch] ? &none : Kernels(cell, dtype);
}

void use_schedule(const Text& name) { ask_schedule(name); }
void use_tf32(bool allowed) { allow_tf32(allowed); }

}  // namespace

Current current(const Tensor&) {
  const Offer h200{90, 132, 232448};
  return {{h200, nullptr, step_kernels, norm_kernels, kernels<0, cluster_kernels>,
           kernels<1, grid_kernels>, kernels<2, stack_kernels>, aoti_torch_cpu_mm_out, write_steps,
           error_text, refuses},
          nullptr};
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn_emulated, CPU, m) {
  m.impl("recurrence", TORCH_BOX(&Ops::forward));
  m.impl("recurrence_backward", TORCH_BOX(&Ops::backward));
  m.impl("recurrence_both", TORCH_BOX(&Ops::forward_both));
  m.impl("recurrence_both_backward", TORCH_BOX(&Ops::backward_both));
  m.impl("recurrence_stack", TORCH_BOX(&recurrence_stack));
  m.impl("recurrence_stack_backward", TORCH_BOX(&recurrence_stack_backward));
  m.impl("masked_attention", TORCH_BOX(&masked_attention));
  m.impl("masked_attention_backward", TORCH_BOX(&masked_attention_backward));
  m.impl("cuda_barriers", TORCH_BOX(&barriers));
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn_emulated, CompositeExplicitAutograd, m) {
  m.impl("use_cuda_schedule", TORCH_BOX(&use_schedule));
  m.impl("use_cuda_tf32", TORCH_BOX(&use_tf32));
  m.impl("refuse_launch", TORCH_BOX(&refuse_launch));
  m.impl("launch_failure", TORCH_BOX(&launch_failure));
}

}  // namespace fastrnn::cuda
