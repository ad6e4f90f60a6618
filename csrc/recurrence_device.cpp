#ifdef FASTRNN_CUDA
#include "device.h"
#include "device_passes.h"

namespace fastrnn::cuda {

Dtype dtype_of(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  if (type == ScalarType::Float) return Dtype::float32;
  if (type == ScalarType::Double) return Dtype::float64;
  if (type == ScalarType::Half) return Dtype::float16;
  check(type == ScalarType::BFloat16, "the CUDA kernels take floating-point tensors, got ", type);
  return Dtype::bfloat16;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> recurrence(
    const Tensor& input, const Tensor& state, const std::optional<Tensor>& weight_ih,
    const Tensor& weight_hh, const std::optional<Tensor>& bias_ih,
    const std::optional<Tensor>& bias_hh, const std::optional<Tensor>& weight_hr,
    const std::optional<Tensor>& gains, const Tensor& batch_sizes,
    const std::optional<Tensor>& resets, const std::optional<Tensor>& seed,
    const std::optional<Tensor>& sequences, const std::vector<double>& zoneout, const Text& cell,
    bool reverse, bool save) {
  const NoGrad no_grad;
  const Inputs in = checked_inputs(input, state, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr,
                                   gains, batch_sizes, cell);
  const fastrnn::Extras extras = checked_extras(in, resets, seed, sequences, zoneout);
  const Current current = cuda::current(in.input);
  const ForwardPass pass(in, extras, current.device, cell, reverse, save);
  run<ForwardPass>({&pass});
  return {pass.output, pass.state_n, pass.cells, pass.reserve};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> recurrence_both(
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
  const Inputs back = checked_inputs(in.input, state_reverse, weight_ih_reverse, weight_hh_reverse,
                                     bias_ih_reverse, bias_hh_reverse, {}, {}, batch_sizes, cell);
  check_both(in, back);
  const Current current = cuda::current(in.input);
  const ForwardPass a(in, checked_extras(in, resets, seed, sequences, zoneout), current.device,
                      cell, false, save);
  const ForwardPass b(back, checked_extras(back, resets_reverse, seed_reverse, sequences, zoneout),
                      current.device, cell, true, save);
  run<ForwardPass>({&a, &b});
  return {a.output, a.state_n, a.cells, a.reserve, b.output, b.state_n, b.cells, b.reserve};
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
    const Tensor& reserve, const Text& cell, bool reverse, bool input_grad, bool weight_grad) {
  const NoGrad no_grad;
  const Inputs in = checked_inputs(input, state, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr,
                                   gains, batch_sizes, cell);
  const fastrnn::Extras extras = checked_extras(in, resets, seed, sequences, zoneout);
  const Saved saved =
      checked_saved(in, extras, grad_output, grad_state_n, grad_cells, output, cells, reserve);
  const Current current = cuda::current(in.input);
  BackwardPass pass(in, extras, saved, current.device, cell, reverse, input_grad, weight_grad);
  run<BackwardPass>({&pass});
  return pass.finished().tuple(input_grad);
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
  const NoGrad no_grad;
  const Inputs in = checked_inputs(input, state, weight_ih, weight_hh, bias_ih, bias_hh, {}, {},
                                   batch_sizes, cell);
  const Inputs back = checked_inputs(in.input, state_reverse, weight_ih_reverse, weight_hh_reverse,
                                     bias_ih_reverse, bias_hh_reverse, {}, {}, batch_sizes, cell);
  check_both(in, back);
  const fastrnn::Extras extras = checked_extras(in, resets, seed, sequences, zoneout);
  const fastrnn::Extras extras_back =
      checked_extras(back, resets_reverse, seed_reverse, sequences, zoneout);
  const Current current = cuda::current(in.input);
  BackwardPass a(
      in, extras,
      checked_saved(in, extras, grad_output, grad_state_n, grad_cells, output, cells, reserve),
      current.device, cell, false, input_grad, weight_grad);
  BackwardPass b(back, extras_back,
                 checked_saved(back, extras_back, grad_output_reverse, grad_state_n_reverse,
                               grad_cells_reverse, output_reverse, cells_reverse, reserve_reverse),
                 current.device, cell, true, input_grad, weight_grad);
  run<BackwardPass>({&a, &b});
  return of_both(a.finished(), b.finished());
}

void barriers(const Tensor& space, std::int64_t cluster, std::int64_t rounds) {
  constexpr Checks check{"cuda_barriers"};
  check(space.numel() > 0 && space.scalar_type() == ScalarType::Int,
        "space must be int32 [1], got ", space);
  check(cluster >= 0 && cluster <= 16 && rounds > 0 && rounds < 1 << 20,
        "cluster must be in [0, 16] and rounds in (0, 2^20), got ", cluster, " and ", rounds);
  const Current current = cuda::current(space);
  const Device& device = current.device;
  auto* const flag = static_cast<unsigned*>(space.mutable_data_ptr());
  const int blocks =
      cluster > 0 ? device.offer.at_once(int(cluster)) * int(cluster) : device.offer.processors;
  const int error = device_barriers(flag, int(cluster), blocks, int(rounds), device.stream);
  if (error) check(false, "the kernel could not be launched: ", device.error_text(error));
}

}  // namespace fastrnn::cuda
#endif
