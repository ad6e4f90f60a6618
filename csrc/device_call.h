// One call of a recurrence operator on a device, in one direction: the products around the step
// kernels' launches.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "recurrence_device.h"
#include "recurrence_ops.h"

namespace fastrnn::cuda {

using torch::headeronly::ScalarType;
using torch::stable::narrow;
using torch::stable::new_empty;

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

// Of the running states [S, B, H], what a product takes: h [B, O].
inline Tensor state_h(const Tensor& states, const Inputs& in) {
  Tensor h = torch::stable::select(states, 0, 0);
  return in.projected ? narrow(h, 1, 0, in.projected) : h;
}

// A copy of the initial states, with zeros beyond the units of a projected h.
inline Tensor running_states(const Inputs& in) {
  const Tensor states = torch::stable::clone(in.state);
  if (in.projected) {
    Tensor h = torch::stable::select(states, 0, 0);
    Tensor beyond = narrow(h, 1, in.projected, in.hidden_size - in.projected);
    torch::stable::zero_(beyond);
  }
  return states;
}

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
  std::optional<Tensor> empty_if(bool wanted, std::int64_t rows, std::int64_t columns) const {
    return wanted ? std::optional<Tensor>(empty(rows, columns)) : std::nullopt;
  }
  // Of the sums' type.
  Tensor empty_sums(std::initializer_list<std::int64_t> shape) const {
    const bool wide = in.input.scalar_type() == ScalarType::Double;
    return new_empty(in.input, shape, wide ? ScalarType::Double : ScalarType::Float);
  }

  const StepKernels& step_kernels() const { return *device.step(cell.c_str(), dtype_of(in.input)); }
  // Null without gains.
  const NormKernels* norm_kernels() const {
    return in.gains ? device.norm(cell.c_str(), dtype_of(in.input)) : nullptr;
  }
  const PersistentKernels& persistent(const Plan& plan) const {
    const bool clusters = plan.schedule == Schedule::cluster;
    return *(clusters ? device.cluster : device.grid)(cell.c_str(), product_dtype());
  }
  Dtype product_dtype() const {
    const Dtype dtype = dtype_of(in.input);
    return dtype == Dtype::float32 && tf32_allowed() ? Dtype::tf32 : dtype;
  }

  Plan plan(bool backward, int directions, int layers = 1) const {
    const Request request{cell,
                          product_dtype(),
                          std::int64_t(steps.size()),
                          in.batch,
                          in.hidden_size,
                          directions,
                          layers,
                          backward,
                          in.gains.has_value(),
                          in.projected > 0,
                          schedule_asked(),
                          launch_failures(in.input.get_device_index())};
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
                  extras.zoneout.on,
                  {}};
    for (int i = 0; i < max_states; ++i) inside.zoneout[i] = extras.zoneout.rates[i];
    // A projection that comes from outside has its bias, unless a norm is to come before it.
    const void* bias_ih = in.weight_ih || in.gains ? data(in.bias_ih) : nullptr;
    return {in.rows, in.batch,         in.hidden_size, in.projected, data(in.state),
            bias_ih, data(in.bias_hh), data(in.gains), inside};
  }
};

inline void forward_by_steps(const Call& call, const Forward& forward, const Tensor& running,
                             const std::optional<Tensor>& unprojected) {
  const StepKernels& kernels = call.step_kernels();
  const NormKernels* const norm = call.norm_kernels();
  void* const stream = call.device.stream;
  Tensor weight = *call.in.weight_hh;
  const std::int64_t H = call.in.hidden_size, B = call.in.batch, O = call.in.output_size();
  const std::int64_t early = kernels.operand_gates * H, late = kernels.gates * H - early;
  const Tensor late_weight = transposed(narrow(weight, 0, early, late));
  Rows h(state_h(running, call.in)), late_product(call.empty(B, late));
  if (early == 0) {
    std::optional<Tensor> inner, weight_hr;
    if (norm && kernels.states > 1) inner = call.empty_sums({B, kernels.reserve + 1, H});
    std::optional<Rows> made, projection;
    if (unprojected) {
      weight_hr = transposed(*call.in.weight_hr);
      made.emplace(*unprojected), projection.emplace(call.empty(B, O));
    }
    for (const Step& step : call.steps) {
      call.product(late_product.first(step.rows), h.first(step.rows), late_weight);
      void* const product = late_product.data();
      call.queued(norm ? norm->forward(forward, step, product, writable(inner), stream)
                       : kernels.forward(forward, step, product, nullptr, stream));
      if (!unprojected) continue;
      call.product(projection->first(step.rows), made->first(step.rows), *weight_hr);
      call.queued(kernels.project(forward, step, projection->data(), stream));
    }
    return;
  }
  const Tensor early_weight = transposed(narrow(weight, 0, 0, early));
  Rows early_product(call.empty(B, early)), operands(call.empty(B, H));
  Tensor stage = call.empty(forward.reserve ? 0 : B, early);
  for (const Step& step : call.steps) {
    call.product(early_product.first(step.rows), h.first(step.rows), early_weight);
    call.queued(kernels.operand(forward, step, early_product.data(), operands.data(),
                                writable(stage), stream));
    call.product(late_product.first(step.rows), operands.first(step.rows), late_weight);
    call.queued(kernels.forward(forward, step, late_product.data(), writable(stage), stream));
  }
}

// What the backward loop leaves for the products after it; see `Backward`.
struct Left {
  Tensor grad_x, grad_h, previous, operand;
  std::optional<Tensor> grad_projected;
};

inline void backward_by_steps(const Call& call, const NormBackward& backward, Left left) {
  const StepKernels& kernels = call.step_kernels();
  const NormKernels* const norm = call.norm_kernels();
  void* const stream = call.device.stream;
  Tensor weight = *call.in.weight_hh;
  const std::int64_t H = call.in.hidden_size, B = call.in.batch, O = call.in.output_size();
  const std::int64_t early = kernels.operand_gates * H, late = kernels.gates * H - early;
  const bool projected = left.grad_projected.has_value();
  Rows product(call.empty(B, O)), scratch(call.empty(early || projected ? B : 0, H));
  Tensor early_weight = narrow(weight, 0, 0, early ? early : late);
  Tensor late_weight = narrow(weight, 0, early, late);
  for (auto step = call.steps.rbegin(); step != call.steps.rend(); ++step) {
    const auto rows_of = [&](Tensor& matrix) { return narrow(matrix, 0, step->row, step->rows); };
    void* arriving = product.data();
    if (projected) {
      call.queued(kernels.project_backward(backward, *step, arriving, stream));
      call.product(scratch.first(step->rows), rows_of(*left.grad_projected), *call.in.weight_hr);
      arriving = scratch.data();
    }
    call.queued(norm ? norm->backward(backward, *step, arriving, stream)
                     : kernels.backward(backward, *step, arriving, stream));
    Tensor rows = rows_of(early > 0 ? left.grad_x : left.grad_h);
    if (early > 0) {
      call.product(scratch.first(step->rows), narrow(rows, 1, early, late), late_weight);
      call.queued(kernels.operand_backward(backward, *step, scratch.data(), stream));
      rows = narrow(rows, 1, 0, early);
    }
    call.product(product.first(step->rows), rows, early_weight);
    if (step->prev_rows < step->rows)
      call.queued(kernels.begin(backward, *step, product.data(), stream));
  }
  if (norm) call.queued(norm->finish(backward, stream));
}

// What comes after the loop: one product for each weight, one sum for each bias, which came with
// the gains where there are some.
inline void weight_gradients(const Call& call, Gradients& grads, Left left, const Tensor& reserve) {
  const Inputs& in = call.in;
  const StepKernels& kernels = call.step_kernels();
  const std::int64_t H = in.hidden_size, early = kernels.operand_gates * H;
  const std::int64_t late = left.grad_h.size(1) - early;
  const auto weight_hh = [&](std::int64_t begin, std::int64_t rows, const Tensor& other) {
    call.product(narrow(grads.weight_hh, 0, begin, rows),
                 transposed(narrow(left.grad_h, 1, begin, rows)), other);
  };
  if (in.weight_ih) call.product(grads.weight_ih, transposed(left.grad_x), in.input);
  if (early > 0) weight_hh(0, early, left.previous);
  weight_hh(early, late, early > 0 ? left.operand : left.previous);
  if (in.weight_hr) {
    Tensor slots = reserve;
    call.product(grads.weight_hr, transposed(*left.grad_projected),
                 narrow(slots, 1, kernels.reserve * H, H));
  }
  if (in.gains) return;
  const std::array<std::int64_t, 1> rows{0};
  if (in.bias_ih) torch::stable::sum_out(grads.bias_ih, left.grad_x, rows);
  if (in.bias_hh) torch::stable::sum_out(grads.bias_hh, left.grad_h, rows);
}

}  // namespace fastrnn::cuda
