// A layer's passes on a device, in one direction, and how several of them run: in one launch where
// the plan says so.
#pragma once

#include "device_call.h"

namespace fastrnn::cuda {

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

  // handed: by the layer below, in one launch with this one.
  ForwardPass(const Inputs& inputs, const fastrnn::Extras& extras, const Device& device,
              const std::string& cell, bool reverse, bool save, bool handed = false)
      : in(inputs),
        extras(extras),
        call{in, cell, reverse, device, walk(in.batch_sizes, reverse)},
        output(call.empty(in.rows, in.output_size())),
        state_n(running_states(in)),
        cells(new_empty(in.input, {in.sizes.states - 1, save ? in.rows : 0, in.hidden_size})),
        reserve(call.empty(save ? in.rows : 0, reserve_slots(in, extras) * in.hidden_size)),
        unprojected(call.empty_if(in.projected, in.batch, in.hidden_size)) {
    if (handed)
      x_proj = call.empty(in.rows, in.sizes.gates * in.hidden_size);
    else if (in.rows > 0)
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
        grads(empty_gradients(in, input_grad, true, weight_grad)) {
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

// One launch for all steps of all directions or layers: PersistentKernels' forward or backward.
// on: `weight_on` of the layers that have one. False if the device refused it: nothing has run then
// and the next plan is another.
template <class Pass, class Launch>
bool run_persistent(const std::vector<const Pass*>& passes, const Plan& plan, Launch launch,
                    const std::vector<const void*>& on = {}) {
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
    const void* const weight_on = ways.size() < on.size() ? on[ways.size()] : nullptr;
    ways.push_back({pass->arguments(), steps, pass->in.weight_hh->const_data_ptr(), weight_on});
  }
  const std::int64_t bytes = plan.layout.bytes * std::int64_t(ways.size());
  const Tensor workspace = torch::stable::new_zeros(call.in.input, {bytes}, ScalarType::Byte);
  const int error =
      launch(ways.data(), int(ways.size()), plan.layout, writable(workspace), call.device.stream);
  if (error && call.device.refuses(error)) {
    remember_failure(call.in.input.get_device_index(), plan.launch(),
                     call.device.error_text(error));
    return false;
  }
  call.queued(error);
  return true;
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
  bool ran;
  if constexpr (Pass::backward)
    ran = run_persistent(passes, plan, kernels.backward);
  else
    ran = run_persistent(passes, plan, kernels.forward);
  if (!ran) run<Pass>(passes);
}

// Makes passes on the device that a tensor is on, and runs them.
struct DeviceRunner {
  const Current current;
  explicit DeviceRunner(const Tensor& input) : current(cuda::current(input)) {}

  ForwardPass forward(const Inputs& in, const fastrnn::Extras& extras, const std::string& cell,
                      bool reverse, bool save) const {
    return {in, extras, current.device, cell, reverse, save};
  }
  BackwardPass backward(const Inputs& in, const fastrnn::Extras& extras, const Saved& saved,
                        const std::string& cell, bool reverse, bool input_grad,
                        bool weight_grad) const {
    return {in, extras, saved, current.device, cell, reverse, input_grad, weight_grad};
  }
  template <class... Pass>
  void run(const Pass&... directions) const {
    cuda::run(std::vector{&directions...});
  }
  const Gradients& finished(BackwardPass& pass) const { return pass.finished(); }
};

using Ops = RecurrenceOps<DeviceRunner>;

}  // namespace fastrnn::cuda
