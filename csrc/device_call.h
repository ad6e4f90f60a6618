// One call of a recurrence operator on a device, in one direction: the products around the step
// kernels' launches.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "recurrence_device.h"

namespace fastrnn::cuda {

using torch::headeronly::ScalarType;
using torch::stable::narrow;
using torch::stable::new_empty;

// Autograd looks away while an operator runs: torch's own views and sums inside it would record
// themselves otherwise.
class NoGrad {
 public:
  NoGrad() : before_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(before_); }

 private:
  const bool before_;
};

inline Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }

// A matrix, and its first rows: as many as a step has sequences.
class Rows {
 public:
  explicit Rows(const Tensor& matrix) : matrix_(matrix), first_(matrix) {}
  const Tensor& first(std::int64_t rows) {
    if (first_.size(0) != rows) first_ = rows == matrix_.size(0) ? matrix_ : slice(rows);
    return first_;
  }
  void* data() const { return matrix_.mutable_data_ptr(); }

 private:
  Tensor slice(std::int64_t rows) {
    Tensor matrix = matrix_;
    return narrow(matrix, 0, 0, rows);
  }
  Tensor matrix_, first_;
};

// One call of an operator on its device.
struct Call {
  const Inputs& in;
  const std::string& cell;
  const bool reverse;
  const Device& device;
  const std::vector<Step> steps;

  void queued(int error) const {
    if (error) check(false, "a CUDA kernel could not be launched: ", device.error_text(error));
  }
  // out = a b
  void product(const Tensor& out, const Tensor& a, const Tensor& b) const {
    if (device.product(out.get(), a.get(), b.get()) != 0)
      check(false, "torch's product of ", text(shape_of(a)), " and ", text(shape_of(b)), " failed");
  }
  Tensor product(const Tensor& a, const Tensor& b) const {
    Tensor out = new_empty(a, {a.size(0), b.size(1)});
    product(out, a, b);
    return out;
  }
  Tensor empty(std::int64_t rows, std::int64_t columns) const {
    return new_empty(in.input, {rows, columns});
  }

  const StepKernels& step_kernels() const { return *device.step(cell.c_str(), dtype_of(in.input)); }
  const PersistentKernels& persistent(const Plan& plan) const {
    const bool clusters = plan.schedule == Schedule::cluster;
    return *(clusters ? device.cluster : device.grid)(cell.c_str(), product_dtype());
  }
  Dtype product_dtype() const {
    const Dtype dtype = dtype_of(in.input);
    return dtype == Dtype::float32 && tf32_allowed() ? Dtype::tf32 : dtype;
  }

  Plan plan(bool backward, int directions) const {
    const Request request{cell,     product_dtype(), std::int64_t(steps.size()),
                          in.batch, in.hidden_size,  directions,
                          backward, false,           schedule_asked()};
    Plan plan = cuda::plan(request, device.offer);
    for (std::size_t i = 0; i < schedule_names.size(); ++i)
      check(plan.schedule || request.asked != schedule_names[i], "the ", request.asked,
            " schedule was asked for: it ", plan.refused[i]);
    return plan;
  }

  // What the launches are given, beside what a pass reads and writes.
  Sequence sequence(const fastrnn::Extras& extras) const {
    Extras inside{static_cast<const bool*>(data(extras.resets)),
                  static_cast<const std::int64_t*>(data(extras.seed)),
                  static_cast<const std::int64_t*>(data(extras.sequences)),
                  {}};
    for (int i = 0; i < max_states; ++i) inside.zoneout[i] = extras.zoneout.rates[i];
    // A projection that comes from outside has its bias.
    const void* bias_ih = in.weight_ih ? data(in.bias_ih) : nullptr;
    return {in.rows, in.batch, in.hidden_size, data(in.state), bias_ih, data(in.bias_hh), inside};
  }
};

inline void forward_by_steps(const Call& call, const Forward& forward, const Tensor& running) {
  const StepKernels& kernels = call.step_kernels();
  void* const stream = call.device.stream;
  Tensor weight = *call.in.weight_hh;
  const std::int64_t H = call.in.hidden_size, B = call.in.batch;
  const std::int64_t early = kernels.operand_gates * H, late = kernels.gates * H - early;
  const Tensor late_weight = transposed(narrow(weight, 0, early, late));
  Rows state(torch::stable::select(running, 0, 0)), late_product(call.empty(B, late));
  if (early == 0) {
    for (const Step& step : call.steps) {
      call.product(late_product.first(step.rows), state.first(step.rows), late_weight);
      call.queued(kernels.forward(forward, step, late_product.data(), nullptr, stream));
    }
    return;
  }
  const Tensor early_weight = transposed(narrow(weight, 0, 0, early));
  Rows early_product(call.empty(B, early)), operands(call.empty(B, H));
  Tensor stage = call.empty(forward.reserve ? 0 : B, early);
  for (const Step& step : call.steps) {
    call.product(early_product.first(step.rows), state.first(step.rows), early_weight);
    call.queued(kernels.operand(forward, step, early_product.data(), operands.data(),
                                writable(stage), stream));
    call.product(late_product.first(step.rows), operands.first(step.rows), late_weight);
    call.queued(kernels.forward(forward, step, late_product.data(), writable(stage), stream));
  }
}

// grad_x, grad_h: [N, G*H], those of `backward`.
inline void backward_by_steps(const Call& call, const Backward& backward, Tensor grad_x,
                              Tensor grad_h) {
  const StepKernels& kernels = call.step_kernels();
  void* const stream = call.device.stream;
  Tensor weight = *call.in.weight_hh;
  const std::int64_t H = call.in.hidden_size, B = call.in.batch;
  const std::int64_t early = kernels.operand_gates * H, late = kernels.gates * H - early;
  Rows product(call.empty(B, H)), scratch(call.empty(early ? B : 0, H));
  Tensor early_weight = narrow(weight, 0, 0, early ? early : late);
  Tensor late_weight = narrow(weight, 0, early, late);
  for (auto step = call.steps.rbegin(); step != call.steps.rend(); ++step) {
    call.queued(kernels.backward(backward, *step, product.data(), stream));
    Tensor rows = narrow(grad_h, 0, step->row, step->rows);
    if (early > 0) {
      rows = narrow(grad_x, 0, step->row, step->rows);
      call.product(scratch.first(step->rows), narrow(rows, 1, early, late), late_weight);
      call.queued(kernels.operand_backward(backward, *step, scratch.data(), stream));
      rows = narrow(rows, 1, 0, early);
    }
    call.product(product.first(step->rows), rows, early_weight);
    if (step->prev_rows < step->rows)
      call.queued(kernels.begin(backward, *step, product.data(), stream));
  }
}

// What comes after the loop: one product for each weight, one sum for each bias.
inline void weight_gradients(const Call& call, Gradients& grads, const Tensor& grad_x,
                             Tensor grad_h, const Tensor& previous, const Tensor& operand) {
  const Inputs& in = call.in;
  if (in.weight_ih) call.product(grads.weight_ih, transposed(grad_x), in.input);
  const std::int64_t early = call.step_kernels().operand_gates * in.hidden_size;
  const std::int64_t late = grad_h.size(1) - early;
  const auto weight_hh = [&](std::int64_t begin, std::int64_t rows, const Tensor& other) {
    call.product(narrow(grads.weight_hh, 0, begin, rows),
                 transposed(narrow(grad_h, 1, begin, rows)), other);
  };
  if (early > 0) weight_hh(0, early, previous);
  weight_hh(early, late, early > 0 ? operand : previous);
  const std::array<std::int64_t, 1> rows{0};
  if (in.bias_ih) torch::stable::sum_out(grads.bias_ih, grad_x, rows);
  if (in.bias_hh) torch::stable::sum_out(grads.bias_hh, grad_h, rows);
}

}  // namespace fastrnn::cuda
