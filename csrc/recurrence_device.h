// The recurrence operators on a device: torch's products around the launches of kernels_cuda.h.
// Nothing here calls CUDA: recurrence_cuda.cpp brings a GPU, tests/emulated.cpp an emulated one.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <memory>
#include <tuple>
#include <vector>

#include "plan.h"
#include "recurrence.h"
#include "text.h"
#include "walk.h"

namespace fastrnn::cuda {

struct Device {
  Offer offer;
  void* stream;  // where everything is queued
  const StepKernels* (*step)(const char* cell, Dtype);
  const NormKernels* (*norm)(const char* cell, Dtype);
  const PersistentKernels* (*cluster)(const char* cell, Dtype);
  const PersistentKernels* (*grid)(const char* cell, Dtype);
  const PersistentKernels* (*stack)(const char* cell, Dtype);
  // aten::mm.out, below the dispatcher: out = a b.
  AOTITorchError (*product)(AtenTensorHandle out, AtenTensorHandle a, AtenTensorHandle b);
  // Queues the writing of `count` steps into the device's memory.
  int (*write_steps)(const Step* steps, std::int64_t count, Step* table, void* stream);
  const char* (*error_text)(int error);
  // Whether an error says that this device does not take such a launch, not that something broke.
  bool (*refuses)(int error);
};

// The device that a tensor is on, current for as long as `guard` lives. recurrence_device.cpp and
// attention_device.cpp call it; whoever links those files defines it.
struct Current {
  Device device;
  std::shared_ptr<void> guard;
};
Current current(const Tensor& tensor);

// Throws for what the kernels do not take.
Dtype dtype_of(const Tensor& tensor);

// Layers of one direction, one above the other: what `recurrence` gives for each, from the first
// on. `layers` has each one's state, weight_ih, weight_hh and, with `bias`, bias_ih, bias_hh. They
// run in one launch where the plan says so.
std::vector<Tensor> recurrence_stack(const Tensor& input, const std::vector<Tensor>& layers,
                                     const Tensor& batch_sizes, const std::optional<Tensor>& resets,
                                     const Text& cell, bool bias, bool save);

// grad_output and grad_cells are the last layer's, grad_state_n those of all layers or of none;
// `saved` has each one's output, cells and reserve. Returns the gradients of `input` and `layers`.
std::vector<Tensor> recurrence_stack_backward(
    const std::optional<Tensor>& grad_output, const std::optional<Tensor>& grad_cells,
    const std::vector<Tensor>& grad_state_n, const Tensor& input, const std::vector<Tensor>& layers,
    const Tensor& batch_sizes, const std::optional<Tensor>& resets,
    const std::vector<Tensor>& saved, const Text& cell, bool bias, bool input_grad, bool state_grad,
    bool weight_grad);

// For measuring: `rounds` barriers of clusters, or (cluster 0) of the grid; space: int32 [1].
void barriers(const Tensor& space, std::int64_t cluster, std::int64_t rounds);

}  // namespace fastrnn::cuda
