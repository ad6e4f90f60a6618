#ifdef FASTRNN_CUDA
#include "device.h"
#include "device_call.h"

namespace fastrnn::cuda {

Dtype dtype_of(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  if (type == ScalarType::Float) return Dtype::float32;
  if (type == ScalarType::Double) return Dtype::float64;
  if (type == ScalarType::Half) return Dtype::float16;
  check(type == ScalarType::BFloat16, "the CUDA kernels take floating-point tensors, got ", type);
  return Dtype::bfloat16;
}

namespace {

// A direction's forward pass: its arguments checked, its results allocated, its input projected.
struct ForwardPass {
  using Arguments = Forward;
  static constexpr bool backward = false;
  const Inputs in;
  const fastrnn::Extras extras;
  const Call call;
  const Tensor output, state_n, cells, reserve;
  const std::optional<Tensor> unprojected;
  Tensor x_proj;

  ForwardPass(const Inputs& inputs, const fastrnn::Extras& extras, const Device& device,
              const std::string& cell, bool reverse, bool save)
      : in(inputs),
        extras(extras),
        call{in, cell, reverse, device, walk(in.batch_sizes, reverse)},
        output(call.empty(in.rows, in.output_size())),
        state_n(running_states(in)),
        cells(new_empty(in.input, {in.sizes.states - 1, save ? in.rows : 0, in.hidden_size})),
        reserve(call.empty(save ? in.rows : 0, reserve_slots(in, extras) * in.hidden_size)),
        unprojected(call.empty_if(in.projected, in.batch, in.hidden_size)) {
    if (in.rows > 0)
      x_proj = in.weight_ih ? call.product(in.input, transposed(*in.weight_ih)) : in.input;
  }
  ForwardPass(const ForwardPass&) = delete;

  Forward arguments() const {
    return {call.sequence(extras), data(x_proj),      writable(state_n),    writable(output),
            writable(cells),       writable(reserve), writable(unprojected)};
  }
  void by_steps() const { forward_by_steps(call, arguments(), state_n, unprojected); }
};

// A direction's backward pass, and what comes after its loop.
struct BackwardPass {
  using Arguments = Backward;
  static constexpr bool backward = true;
  const Inputs in;
  const fastrnn::Extras extras;
  const Saved saved;
  const Call call;
  const bool input_grad, weight_grad;
  Gradients grads;
  Left left;
  Tensor carry;
  std::optional<Tensor> gates, gates_h, grad_c, moments;  // of layer normalisation

  BackwardPass(const Inputs& inputs, const fastrnn::Extras& extras, const Saved& saved,
               const Device& device, const std::string& cell, bool reverse, bool input_grad,
               bool weight_grad)
      : in(inputs),
        extras(extras),
        saved(saved),
        call{in, cell, reverse, device, walk(in.batch_sizes, reverse)},
        input_grad(input_grad),
        weight_grad(weight_grad),
        grads(empty_gradients(in, input_grad, weight_grad)) {
    const StepKernels& kernels = call.step_kernels();
    const std::int64_t N = in.rows, H = in.hidden_size, GH = kernels.gates * H;
    const std::int64_t S = in.sizes.states;
    const bool shared = kernels.shared_gradients, normed = in.gains.has_value();
    left.grad_x = in.weight_ih ? call.empty(N, GH) : grads.input;
    left.grad_h = shared && !normed ? left.grad_x : call.empty(N, GH);
    left.previous = call.empty(weight_grad ? N : 0, in.output_size());
    left.operand = call.empty(kernels.operand_gates ? N : 0, H);
    left.grad_projected = call.empty_if(in.projected, N, in.projected);
    carry = call.empty_sums({S, in.batch, H});
    gates = call.empty_if(normed, N, GH);
    gates_h = shared ? gates : call.empty_if(normed, N, GH);
    grad_c = call.empty_if(normed && S > 1, N, H);
    if (normed) moments = call.empty_sums({1 + S, N, 2});
  }
  BackwardPass(const BackwardPass&) = delete;

  NormBackward arguments() const {
    return {{call.sequence(extras), data(saved.grad_output), data(saved.grad_state_n),
             data(saved.grad_cells), data(saved.output), data(saved.cells), data(saved.reserve),
             writable(carry), writable(left.grad_x), writable(left.grad_h), writable(grads.state),
             writable(left.previous), writable(left.operand), writable(left.grad_projected)},
            writable(gates),
            writable(gates_h),
            writable(grad_c),
            writable(moments),
            writable(grads.gains),
            writable(grads.bias_ih),
            writable(grads.bias_hh)};
  }
  void by_steps() const { backward_by_steps(call, arguments(), left); }

  const Gradients& finished() {
    if (in.rows == 0) {
      no_rows(grads, saved.grad_state_n);
      return grads;
    }
    if (in.weight_ih && input_grad) call.product(grads.input, left.grad_x, *in.weight_ih);
    if (weight_grad) weight_gradients(call, grads, left, saved.reserve);
    return grads;
  }
};

// One launch for all steps of all directions: PersistentKernels' forward or backward.
template <class Pass, class Launch>
void run_persistent(const std::vector<const Pass*>& passes, const Layout& layout, Launch launch) {
  const Call& call = passes[0]->call;
  std::vector<Tensor> tables;
  std::vector<Way<typename Pass::Arguments>> ways;
  for (const Pass* pass : passes) {
    const std::vector<Step>& walked = pass->call.steps;
    Steps steps{std::int64_t(walked.size()), nullptr, pass->call.reverse};
    if (steps.steps * pass->in.batch != pass->in.rows) {
      constexpr std::int64_t words = sizeof(Step) / sizeof(std::int64_t);
      tables.push_back(new_empty(pass->in.input, {steps.steps * words}, ScalarType::Long));
      Step* const on_device = static_cast<Step*>(tables.back().mutable_data_ptr());
      call.queued(
          call.device.write_steps(walked.data(), steps.steps, on_device, call.device.stream));
      steps.table = on_device;
    }
    ways.push_back({pass->arguments(), steps, pass->in.weight_hh->const_data_ptr()});
  }
  const std::int64_t bytes = layout.bytes * std::int64_t(ways.size());
  const Tensor workspace = torch::stable::new_zeros(call.in.input, {bytes}, ScalarType::Byte);
  call.queued(
      launch(ways.data(), int(ways.size()), layout, writable(workspace), call.device.stream));
}

// The directions of a layer: side by side in a persistent kernel, else one after the other.
template <class Pass>
void run(const std::vector<const Pass*>& passes) {
  const Call& call = passes[0]->call;
  if (call.in.rows == 0) return;
  const Plan plan = call.plan(Pass::backward, int(passes.size()));
  if (plan.schedule == Schedule::step || plan.at_once < int(passes.size())) {
    for (const Pass* pass : passes) {
      if (plan.schedule == Schedule::step)
        pass->by_steps();
      else
        run<Pass>({pass});
    }
    return;
  }
  const PersistentKernels& kernels = call.persistent(plan);
  if constexpr (Pass::backward)
    run_persistent(passes, plan.layout, kernels.backward);
  else
    run_persistent(passes, plan.layout, kernels.forward);
}

void check_both(const Inputs& a, const Inputs& b) {
  check(a.hidden_size == b.hidden_size, "both directions must have H units, got ", a.hidden_size,
        " and ", b.hidden_size);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> recurrence(
    const Tensor& input, const Tensor& state, const std::optional<Tensor>& weight_ih,
    const Tensor& weight_hh, const std::optional<Tensor>& bias_ih,
    const std::optional<Tensor>& bias_hh, const std::optional<Tensor>& weight_hr,
    const std::optional<Tensor>& gains, const Tensor& batch_sizes,
    const std::optional<Tensor>& resets, const std::optional<Tensor>& seed,
    const std::optional<Tensor>& sequences, const std::vector<double>& zoneout,
    const std::string& cell, bool reverse, bool save) {
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
    const std::vector<double>& zoneout, const std::string& cell, bool save) {
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
    const Tensor& reserve, const std::string& cell, bool reverse, bool input_grad,
    bool weight_grad) {
  const NoGrad no_grad;
  const Inputs in = checked_inputs(input, state, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr,
                                   gains, batch_sizes, cell);
  const fastrnn::Extras extras = checked_extras(in, resets, seed, sequences, zoneout);
  const Saved saved =
      checked_saved(in, extras, grad_output, grad_state_n, grad_cells, output, cells, reserve);
  const Current current = cuda::current(in.input);
  BackwardPass pass(in, extras, saved, current.device, cell, reverse, input_grad, weight_grad);
  run<BackwardPass>({&pass});
  return pass.finished().tuple();
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
    const Tensor& reserve_reverse, const std::string& cell, bool input_grad, bool weight_grad) {
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
  const Gradients &one = a.finished(), &other = b.finished();
  return {one.input,   one.state,   one.weight_ih,   one.weight_hh,   one.bias_ih,   one.bias_hh,
          other.input, other.state, other.weight_ih, other.weight_hh, other.bias_ih, other.bias_hh};
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
  const int error =
      device_barriers(flag, int(cluster), device.offer.processors, int(rounds), device.stream);
  if (error) check(false, "the kernel could not be launched: ", device.error_text(error));
}

}  // namespace fastrnn::cuda
#endif
