// Layers one above the other, on a device.
#ifdef FASTRNN_CUDA
#include <deque>

#include "device_passes.h"
#include "stack.h"

namespace fastrnn::cuda {

namespace {

Plan plan_of(const Stack& stack, const Inputs& first, const Device& device, bool backward) {
  for (std::size_t k = 1; k < stack.layers; ++k)
    check(stack.tensors[k * stack.each].size(-1) == first.hidden_size,
          "all layers must have H units, got ", first.hidden_size, " and ",
          stack.tensors[k * stack.each].size(-1));
  const Call call{first, stack.cell, false, device, walk(first.batch_sizes, false)};
  return first.rows > 0 ? call.plan(backward, 1, int(stack.layers)) : Plan{};
}

template <class Pass>
const PersistentKernels& launch_of(const std::deque<Pass>& passes) {
  const Call& call = passes[0].call;
  return *call.device.stack(call.cell.c_str(), call.product_dtype());
}

// Those whose weight_ih is used in the launch: all but one.
template <class Pass, class Launch>
bool run_stack(const std::deque<Pass>& passes, bool from_second, const Plan& plan, Launch launch) {
  std::vector<const Pass*> every;
  std::vector<const void*> on;
  for (const Pass& pass : passes) {
    if (every.size() > 0 || !from_second) on.push_back(data(pass.in.weight_ih));
    every.push_back(&pass);
  }
  on.resize(every.size() - 1);
  return run_persistent(every, plan, launch, on);
}

}  // namespace

std::vector<Tensor> recurrence_stack(const Tensor& input, const std::vector<Tensor>& layers,
                                     const Tensor& batch_sizes, const std::optional<Tensor>& resets,
                                     const Text& cell, bool bias, bool save) {
  const NoGrad no_grad;
  const Stack stack(layers, batch_sizes, cell, bias);
  const Current current = cuda::current(input);
  const Plan plan = plan_of(stack, stack.inputs(0, input), current.device, false);
  const bool at_once = plan.layers > 1;
  std::deque<ForwardPass> passes;
  for (std::size_t k = 0; k < stack.layers; ++k) {
    const Inputs in = stack.inputs(k, k > 0 ? passes.back().output : input);
    const fastrnn::Extras extras = checked_extras(in, resets, {}, {}, {});
    passes.emplace_back(in, extras, current.device, cell, false, save, at_once && k > 0);
    if (!at_once) run<ForwardPass>({&passes.back()});
  }
  if (at_once && !run_stack(passes, true, plan, launch_of(passes).forward))
    return recurrence_stack(input, layers, batch_sizes, resets, cell, bias, save);
  std::vector<Tensor> results;
  for (const ForwardPass& pass : passes)
    for (const Tensor& t : {pass.output, pass.state_n, pass.cells, pass.reserve})
      results.push_back(t);
  return results;
}

std::vector<Tensor> recurrence_stack_backward(
    const std::optional<Tensor>& grad_output, const std::optional<Tensor>& grad_cells,
    const std::vector<Tensor>& grad_state_n, const Tensor& input, const std::vector<Tensor>& layers,
    const Tensor& batch_sizes, const std::optional<Tensor>& resets,
    const std::vector<Tensor>& saved, const Text& cell, bool bias, bool input_grad, bool state_grad,
    bool weight_grad) {
  const NoGrad no_grad;
  const Stack stack(layers, batch_sizes, cell, bias);
  const std::size_t top = stack.layers - 1;
  check_stack_gradients(stack, grad_state_n, saved);
  const Current current = cuda::current(input);
  const Plan plan = plan_of(stack, stack.inputs(0, input), current.device, true);
  const bool at_once = plan.layers > 1;
  std::deque<BackwardPass> passes;  // from the last layer on
  for (std::size_t k = stack.layers; k-- > 0;) {
    const Inputs in = stack.inputs(k, k > 0 ? saved[3 * k - 3] : input);
    const fastrnn::Extras extras = checked_extras(in, resets, {}, {}, {});
    std::optional<Tensor> sent = grad_output, state_n;
    if (k < top)
      sent = at_once ? new_empty(in.input, {in.rows, in.hidden_size}) : passes.back().grads.input;
    if (!grad_state_n.empty()) state_n = grad_state_n[k];
    const Saved kept =
        checked_saved(in, extras, sent, state_n, k == top ? grad_cells : std::nullopt, saved[3 * k],
                      saved[3 * k + 1], saved[3 * k + 2]);
    const bool wanted = k > 0 ? !at_once : input_grad;
    passes.emplace_back(in, extras, kept, current.device, cell, false, wanted, weight_grad);
    if (at_once) continue;
    run<BackwardPass>({&passes.back()});
    passes.back().finished();
  }
  if (at_once && !run_stack(passes, false, plan, launch_of(passes).backward))
    return recurrence_stack_backward(grad_output, grad_cells, grad_state_n, input, layers,
                                     batch_sizes, resets, saved, cell, bias, input_grad, state_grad,
                                     weight_grad);
  std::vector<Tensor> results{passes.back().grads.input};
  for (auto pass = passes.rbegin(); pass != passes.rend(); ++pass) {
    const Gradients& grads = at_once ? pass->finished() : pass->grads;
    const Tensor state = state_grad ? grads.state : new_empty(input, {0});
    results.insert(results.end(), {state, grads.weight_ih, grads.weight_hh});
    if (bias) results.insert(results.end(), {grads.bias_ih, grads.bias_hh});
  }
  return results;
}

}  // namespace fastrnn::cuda
#endif
