// The operators on CPU tensors, on torch's stable ABI; `fastrnn/ops.py` holds their schemas.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "device.h"
#include "dispatch.h"
#include "plan.h"
#include "recurrence.h"

namespace fastrnn {

namespace {

// Multiply-adds of one step.
template <class Arguments>
std::int64_t step_work(const Arguments& arguments) {
  return arguments.rows * arguments.hidden_size * arguments.hidden_size / arguments.steps;
}

Sequence sequence(const Inputs& in, const Walk& walk, const Extras& extras) {
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

const CellKernels& kernels_for(const std::string& cell, const Tensor& input) {
  check.kernel_dtype(input, true);
  return *instruction_set().kernels(cell.c_str(), int(input.element_size()));
}

// Those of whole rows, which few cells have.
const RowKernels& row_kernels_for(const std::string& cell, const Tensor& input) {
  check.kernel_dtype(input);
  return *instruction_set().row_kernels(cell.c_str(), int(input.element_size()));
}

const Kernel<Forward>& forward_for(const std::string& cell, const Tensor& input, bool rows) {
  const CellKernels& kernels = kernels_for(cell, input);
  return rows ? row_kernels_for(cell, input).forward : kernels.forward;
}

const Kernel<Backward>& backward_for(const std::string& cell, const Tensor& input, bool rows) {
  const CellKernels& kernels = kernels_for(cell, input);
  return rows ? row_kernels_for(cell, input).backward : kernels.backward;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> recurrence(
    const Tensor& input, const Tensor& state, const std::optional<Tensor>& weight_ih,
    const Tensor& weight_hh, const std::optional<Tensor>& bias_ih,
    const std::optional<Tensor>& bias_hh, const std::optional<Tensor>& weight_hr,
    const std::optional<Tensor>& gains, const Tensor& batch_sizes,
    const std::optional<Tensor>& resets, const std::optional<Tensor>& seed,
    const std::optional<Tensor>& sequences, const std::vector<double>& zoneout,
    const std::string& cell, bool reverse, bool save) {
  const Inputs in = checked_inputs(input, state, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr,
                                   gains, batch_sizes, cell);
  const Extras extras = checked_extras(in, resets, seed, sequences, zoneout);
  const std::int64_t H = in.hidden_size, saved = save ? in.rows : 0;
  Tensor output = torch::stable::new_empty(in.input, {in.rows, in.output_size()});
  Tensor state_n = torch::stable::clone(in.state);
  Tensor cells = torch::stable::new_empty(in.input, {in.sizes.states - 1, saved, H});
  Tensor reserve = torch::stable::new_empty(in.input, {saved, reserve_slots(in, extras) * H});
  if (in.rows > 0) {
    const Walk walk(in.batch_sizes, reverse, extras.reset_rows());
    const Forward arguments{sequence(in, walk, extras),
                            nullptr,
                            in.weight_ih.has_value(),
                            output.mutable_data_ptr(),
                            state_n.mutable_data_ptr(),
                            save ? cells.mutable_data_ptr() : nullptr,
                            save ? reserve.mutable_data_ptr() : nullptr};
    run(forward_for(cell, in.input, in.projected || in.gains), arguments, step_work(arguments));
  }
  return {output, state_n, cells, reserve};
}

Weights weights_of(std::int64_t input_size, std::int64_t hidden_size, std::int64_t projected) {
  return {input_size, hidden_size, projected, nullptr, nullptr, nullptr};
}

Tensor pack_weights(const Tensor& weight_ih, const Tensor& weight_hh,
                    const std::optional<Tensor>& weight_hr, const std::string& cell) {
  const std::int64_t GH = weight_hh.size(0), H = GH / cell_sizes(cell).gates;
  const std::int64_t P = weight_hr ? projected_size(*weight_hr, cell, H) : 0;
  const Tensor hh =
      check.tensor("weight_hh", weight_hh, {cell_sizes(cell).gates * H, P ? P : H}, weight_hh);
  const Tensor ih = check.tensor("weight_ih", weight_ih, {GH, weight_ih.size(-1)}, weight_hh);
  const Tensor hr = weight_hr ? check.tensor("weight_hr", *weight_hr, {P, H}, weight_hh) : hh;
  Weights weights = weights_of(ih.size(1), H, P);
  weights.weight_ih = ih.const_data_ptr(), weights.weight_hh = hh.const_data_ptr();
  weights.weight_hr = P ? hr.const_data_ptr() : nullptr;
  const Kernel<Weights>& kernel = kernels_for(cell, hh).pack;
  const std::int64_t bytes = kernel.workspace(weights, 1);
  Tensor packed = torch::stable::new_empty(hh, {bytes / std::int64_t(hh.element_size())});
  run(kernel, weights, static_cast<char*>(packed.mutable_data_ptr()), 1);
  return packed;
}

// Of packed weights, which do not say.
void check_projection(std::int64_t hidden_size, std::int64_t proj_size, const std::string& cell,
                      bool gains) {
  check(proj_size >= 0 && proj_size <= hidden_size, "proj_size must be 0 to H = ", hidden_size,
        ", got ", proj_size);
  check(!proj_size || (cell == "lstm" && !gains), "proj_size needs cell lstm without gains, got ",
        cell);
}

std::tuple<Tensor, Tensor, Tensor> recurrence_packed(
    const Tensor& input, const Tensor& state, const Tensor& packed,
    const std::optional<Tensor>& bias_ih, const std::optional<Tensor>& bias_hh,
    const std::optional<Tensor>& gains, const Tensor& batch_sizes,
    const std::optional<Tensor>& resets, const std::optional<Tensor>& seed,
    const std::optional<Tensor>& sequences, const std::vector<double>& zoneout,
    const std::string& cell, std::int64_t proj_size, bool reverse, bool return_cells) {
  Inputs in = checked_inputs(input, state, std::nullopt, std::nullopt, bias_ih, bias_hh,
                             std::nullopt, gains, batch_sizes, cell);
  check_projection(in.hidden_size, proj_size, cell, gains.has_value());
  in.projected = proj_size;
  const Extras extras = checked_extras(in, resets, seed, sequences, zoneout);
  const CellKernels& kernels = kernels_for(cell, in.input);
  const std::int64_t bytes =
      kernels.pack.workspace(weights_of(in.input_size, in.hidden_size, proj_size), 1);
  const Tensor weights =
      check.tensor("packed", packed, {bytes / std::int64_t(in.input.element_size())}, in.input);
  Tensor output = torch::stable::new_empty(in.input, {in.rows, in.output_size()});
  Tensor state_n = torch::stable::clone(in.state);
  Tensor cells = torch::stable::new_empty(
      in.input, {in.sizes.states - 1, return_cells ? in.rows : 0, in.hidden_size});
  if (in.rows > 0) {
    const Walk walk(in.batch_sizes, reverse, extras.reset_rows());
    const Forward arguments{sequence(in, walk, extras),
                            static_cast<char*>(weights.data_ptr()),
                            true,
                            output.mutable_data_ptr(),
                            state_n.mutable_data_ptr(),
                            return_cells ? cells.mutable_data_ptr() : nullptr,
                            nullptr};
    run(forward_for(cell, in.input, in.projected || in.gains), arguments, step_work(arguments));
  }
  return {output, state_n, cells};
}

// One step through a stack of layers. Their states change in place: a kernel reads h before it
// copies the last one there, and carries c there anyway. `packed` holds one layer's weights after
// the other's.
Tensor recurrence_step(const Tensor& input, const Tensor& states, const Tensor& packed,
                       const std::optional<Tensor>& biases, const std::optional<Tensor>& gains,
                       const std::vector<double>& zoneout, const std::string& cell,
                       std::int64_t proj_size) {
  constexpr Checks check{"recurrence_step"};
  const CellSizes sizes = cell_sizes(cell);
  check.kernel_dtype(input, true);
  check(input.dim() == 2, "input must be [B, I], got ", input);
  check(states.dim() == 4, "states must be [L, S, B, H], got ", states);
  const std::int64_t L = states.size(0), B = input.size(0), H = states.size(3);
  const std::int64_t element = std::int64_t(input.element_size()), GH = sizes.gates * H;
  const std::int64_t P = proj_size ? proj_size : H, K = 2 * (GH + (sizes.states - 1) * H);
  check.tensor("states", states, {L, sizes.states, B, H}, input);
  check(states.is_contiguous() && packed.is_contiguous() && (!biases || biases->is_contiguous()) &&
            (!gains || gains->is_contiguous()),
        "states, packed, biases and gains must be contiguous, got strided ones");
  if (biases) check.tensor("biases", *biases, {L, 2, GH}, input);
  check(!gains || cell == "lstm" || cell == "gru", "gains need cell lstm or gru, got ", cell);
  if (gains) check.tensor("gains", *gains, {L, K}, input);
  check_projection(H, proj_size, cell, gains.has_value());
  check(zoneout.empty() || std::int64_t(zoneout.size()) == sizes.states,
        "zoneout must have S = ", sizes.states, " rates or none, got ", zoneout.size());
  Zoneout expected{};
  expected.on = !zoneout.empty();
  for (std::size_t i = 0; i < zoneout.size(); ++i) expected.rates[i] = zoneout[i];

  const CellKernels& kernels = kernels_for(cell, input);
  const auto pack_bytes = [&](std::int64_t I) {
    return kernels.pack.workspace(weights_of(I, H, proj_size), 1);
  };
  const std::int64_t first = pack_bytes(input.size(1)), other = pack_bytes(P);
  check.tensor("packed", packed, {(first + (L - 1) * other) / element}, input);
  check(L > 0 && H > 0 && input.size(1) > 0, "layers, units and inputs must be at least 1, got ", L,
        ", ", H, " and ", input.size(1));

  const Kernel<Forward>& forward = forward_for(cell, input, proj_size || gains);
  const Segment segment{0, 0, B, -1, -1, 0, false, false};
  const std::int64_t step_begin[2] = {0, 1};
  Tensor rows = input.is_contiguous() ? input : torch::stable::contiguous(input);
  char* const state = static_cast<char*>(states.mutable_data_ptr());
  char* const weights = static_cast<char*>(packed.mutable_data_ptr());
  for (std::int64_t l = 0; l < L && B > 0; ++l) {
    const auto bias = [&](std::int64_t i) -> const char* {
      if (!biases) return nullptr;
      return static_cast<const char*>(biases->const_data_ptr()) + (2 * l + i) * GH * element;
    };
    const Tensor output = torch::stable::new_empty(input, {B, P});
    char* const here = state + l * sizes.states * B * H * element;
    const Forward arguments{
        {B, B, rows.size(1), H, &segment, step_begin, 1, rows.const_data_ptr(), here, nullptr,
         nullptr, bias(0), bias(1), false, expected, proj_size, nullptr,
         gains ? static_cast<const char*>(gains->const_data_ptr()) + l * K * element : nullptr},
        weights + (l == 0 ? 0 : first + (l - 1) * other),
        true,
        output.mutable_data_ptr(),
        here,
        nullptr,
        nullptr};
    run(forward, arguments, step_work(arguments));
    rows = output;
  }
  return B > 0 ? rows : torch::stable::new_empty(input, {B, P});
}

Gradients::Tuple recurrence_backward(
    const std::optional<Tensor>& grad_output, const std::optional<Tensor>& grad_state_n,
    const std::optional<Tensor>& grad_cells, const Tensor& input, const Tensor& state,
    const std::optional<Tensor>& weight_ih, const Tensor& weight_hh,
    const std::optional<Tensor>& bias_ih, const std::optional<Tensor>& bias_hh,
    const std::optional<Tensor>& weight_hr, const std::optional<Tensor>& gains,
    const Tensor& batch_sizes, const std::optional<Tensor>& resets,
    const std::optional<Tensor>& seed, const std::optional<Tensor>& sequences,
    const std::vector<double>& zoneout, const Tensor& output, const Tensor& cells,
    const Tensor& reserve, const std::string& cell, bool reverse, bool input_grad,
    bool weight_grad) {
  const Inputs in = checked_inputs(input, state, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr,
                                   gains, batch_sizes, cell);
  const Extras extras = checked_extras(in, resets, seed, sequences, zoneout);
  const Saved saved =
      checked_saved(in, extras, grad_output, grad_state_n, grad_cells, output, cells, reserve);
  Gradients grads = empty_gradients(in, input_grad, weight_grad);
  if (in.rows > 0) {
    const Walk walk(in.batch_sizes, reverse, extras.reset_rows());
    const Backward arguments{
        sequence(in, walk, extras),     data(saved.grad_output),       data(saved.grad_state_n),
        data(saved.grad_cells),         saved.output.const_data_ptr(), saved.cells.const_data_ptr(),
        saved.reserve.const_data_ptr(), writable(grads.input),         writable(grads.state),
        writable(grads.weight_ih),      writable(grads.weight_hh),     writable(grads.bias_ih),
        writable(grads.bias_hh),        writable(grads.weight_hr),     writable(grads.gains)};
    run(backward_for(cell, in.input, in.projected || in.gains), arguments, step_work(arguments));
  } else {
    no_rows(grads, saved.grad_state_n);
  }
  return grads.tuple();
}

std::string cpu_instruction_set() { return instruction_set().name; }

// Compute capability (two numbers), multiprocessors, bytes of shared memory a block can have, and
// whether the library holds code for the device.
std::vector<std::int64_t> cuda_device(std::int64_t index) {
#ifdef FASTRNN_CUDA
  DeviceFacts facts;
  const int error = device_probe(int(index), &facts);
  if (error != 0)
    throw std::runtime_error("CUDA device " + std::to_string(index) + ": " +
                             device_error_text(error));
  return {facts.capability_major, facts.capability_minor, facts.multiprocessors,
          facts.shared_memory_per_block, facts.has_code};
#else
  throw std::runtime_error("CUDA device " + std::to_string(index) +
                           ": this build has no CUDA kernels");
#endif
}

// The schedule that may run on CUDA devices from now on, or "auto".
void use_cuda_schedule(const std::string& name) { cuda::ask_schedule(name); }

// Why a device refused a launch in this process, one of cuda::launch_names; else empty.
std::string cuda_launch_failure(const std::string& launch) {
  const auto& names = cuda::launch_names;
  const auto found = std::find(names.begin(), names.end(), launch);
  constexpr Checks check{"cuda_launch_failure"};
  check(found != names.end(), "launch must be cluster, grid or layers, got '", launch, "'");
  return cuda::launch_failures()[std::size_t(found - names.begin())];
}

// Whether products of float32 numbers on CUDA devices may be TF32's from now on.
void use_cuda_tf32(bool allowed) { cuda::allow_tf32(allowed); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("recurrence", TORCH_BOX(&recurrence));
  m.impl("recurrence_backward", TORCH_BOX(&recurrence_backward));
  m.impl("pack_weights", TORCH_BOX(&pack_weights));
  m.impl("recurrence_packed", TORCH_BOX(&recurrence_packed));
  m.impl("recurrence_step", TORCH_BOX(&recurrence_step));
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&cpu_instruction_set));
  m.impl("cuda_device", TORCH_BOX(&cuda_device));
  m.impl("use_cuda_schedule", TORCH_BOX(&use_cuda_schedule));
  m.impl("cuda_launch_failure", TORCH_BOX(&cuda_launch_failure));
  m.impl("use_cuda_tf32", TORCH_BOX(&use_cuda_tf32));
}

}  // namespace fastrnn
