// The operators on CUDA tensors.
#ifdef FASTRNN_CUDA
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <map>
#include <mutex>

#include "attention_device.h"
#include "device.h"
#include "device_passes.h"

// torch's CUDA library has these; weak, so that this library also loads where torch has no CUDA.
extern "C" {
__attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(std::int32_t, void**);
__attribute__((weak)) AOTITorchError aoti_torch_cuda_mm_out(AtenTensorHandle, AtenTensorHandle,
                                                            AtenTensorHandle);
}

namespace fastrnn::cuda {

namespace {

// Asked once per device.
Offer offer_of(int index) {
  static std::mutex mutex;
  static std::map<int, Offer> offers;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto known = offers.find(index);
  if (known != offers.end()) return known->second;
  DeviceFacts facts{};
  const int error = device_probe(index, &facts);
  check(error == 0, "CUDA device ", index, ": ", device_error_text(error));
  check(facts.has_code, "CUDA device ", index, ": this build has no code for compute capability ",
        facts.capability_major, ".", facts.capability_minor);
  return offers[index] = {10 * facts.capability_major + facts.capability_minor,
                          facts.multiprocessors, facts.shared_memory_per_block,
                          std::to_array(facts.clusters)};
}

}  // namespace

Current current(const Tensor& tensor) {
  check(aoti_torch_get_current_cuda_stream && aoti_torch_cuda_mm_out, "this torch has no CUDA");
  const int index = tensor.get_device_index();
  const Offer offer = offer_of(index);
  auto guard = std::make_shared<torch::stable::accelerator::DeviceGuard>(index);
  void* stream = nullptr;
  check(aoti_torch_get_current_cuda_stream(index, &stream) == 0, "CUDA device ", index,
        " has no current stream");
  return {{offer, stream, step_kernels, norm_kernels, cluster_kernels, grid_kernels, stack_kernels,
           aoti_torch_cuda_mm_out, write_steps, device_error_text, device_refuses},
          guard};
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) {
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

}  // namespace fastrnn::cuda
#endif
