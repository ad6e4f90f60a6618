#ifdef FASTRNN_CUDA
#include "recurrence_device.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "device.h"

namespace fastrnn::cuda {

Dtype dtype_of(const Tensor& tensor) {
  using torch::headeronly::ScalarType;
  const ScalarType type = tensor.scalar_type();
  if (type == ScalarType::Float) return Dtype::float32;
  if (type == ScalarType::Double) return Dtype::float64;
  if (type == ScalarType::Half) return Dtype::float16;
  check(type == ScalarType::BFloat16, "the CUDA kernels take floating-point tensors");
  return Dtype::bfloat16;
}

namespace {

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

Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }

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
    return *(clusters ? device.cluster : device.grid)(cell.c_str(), dtype_of(in.input));
  }

  Plan plan(bool backward) const {
    const Request request{cell,
                          dtype_of(in.input),
                          std::int64_t(steps.size()),
                          in.batch,
                          in.hidden_size,
                          1,
                          backward,
                          false,
                          schedule_asked()};
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

void forward_by_steps(const Call& call, const Forward& forward, const Tensor& running) {
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
void backward_by_steps(const Call& call, const Backward& backward, Tensor grad_x, Tensor grad_h) {
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
void weight_gradients(const Call& call, Gradients& grads, const Tensor& grad_x, Tensor grad_h,
                      const Tensor& previous, const Tensor& operand) {
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

// One launch for the whole sequence: PersistentKernels' forward or backward.
template <class Arguments>
void run_persistent(const Call& call, const Layout& layout, const Arguments& arguments,
                    int (*launch)(const Arguments&, const Steps&, const void*, const Layout&, void*,
                                  void*)) {
  const Inputs& in = call.in;
  Steps steps{std::int64_t(call.steps.size()), nullptr, call.reverse};
  Tensor table;
  if (steps.steps * in.batch != in.rows) {
    constexpr std::int64_t words = sizeof(Step) / sizeof(std::int64_t);
    table = new_empty(in.input, {steps.steps * words}, ScalarType::Long);
    Step* const on_device = static_cast<Step*>(table.mutable_data_ptr());
    call.queued(
        call.device.write_steps(call.steps.data(), steps.steps, on_device, call.device.stream));
    steps.table = on_device;
  }
  const Tensor workspace = torch::stable::new_zeros(in.input, {layout.bytes}, ScalarType::Byte);
  call.queued(launch(arguments, steps, in.weight_hh->const_data_ptr(), layout, writable(workspace),
                     call.device.stream));
}

// Inputs of the recurrences that there are CUDA kernels for.
Inputs plain_inputs(const Tensor& input, const Tensor& state,
                    const std::optional<Tensor>& weight_ih, const Tensor& weight_hh,
                    const std::optional<Tensor>& bias_ih, const std::optional<Tensor>& bias_hh,
                    const std::optional<Tensor>& weight_hr, const std::optional<Tensor>& gains,
                    const Tensor& batch_sizes, const std::string& cell) {
  check(!weight_hr, "the CUDA kernels have no projection of h: weight_hr must be absent");
  check(!gains, "the CUDA kernels have no layer normalisation: gains must be absent");
  return checked_inputs(input, state, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, gains,
                        batch_sizes, cell);
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
  const Inputs in = plain_inputs(input, state, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr,
                                 gains, batch_sizes, cell);
  const fastrnn::Extras extras = checked_extras(in, resets, seed, sequences, zoneout);
  const Current current = cuda::current(in.input);
  const Call call{in, cell, reverse, current.device, walk(in.batch_sizes, reverse)};
  const std::int64_t H = in.hidden_size, saved = save ? in.rows : 0;
  const Tensor output = call.empty(in.rows, H), state_n = torch::stable::clone(in.state);
  const Tensor cells = new_empty(in.input, {in.sizes.states - 1, saved, H});
  const Tensor reserve = call.empty(saved, reserve_slots(in, extras) * H);
  if (in.rows > 0) {
    const Tensor x_proj =
        in.weight_ih ? call.product(in.input, transposed(*in.weight_ih)) : in.input;
    const Forward forward{call.sequence(extras), data(x_proj),    writable(state_n),
                          writable(output),      writable(cells), writable(reserve)};
    const Plan plan = call.plan(false);
    if (plan.schedule == Schedule::step)
      forward_by_steps(call, forward, state_n);
    else
      run_persistent(call, plan.layout, forward, call.persistent(plan).forward);
  }
  return {output, state_n, cells, reserve};
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
  const Inputs in = plain_inputs(input, state, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr,
                                 gains, batch_sizes, cell);
  const fastrnn::Extras extras = checked_extras(in, resets, seed, sequences, zoneout);
  const Saved saved =
      checked_saved(in, extras, grad_output, grad_state_n, grad_cells, output, cells, reserve);
  const Current current = cuda::current(in.input);
  Gradients grads = empty_gradients(in, input_grad, weight_grad);
  if (in.rows == 0) {
    no_rows(grads, saved.grad_state_n);
    return grads.tuple();
  }
  const Call call{in, cell, reverse, current.device, walk(in.batch_sizes, reverse)};
  const StepKernels& kernels = call.step_kernels();
  const std::int64_t N = in.rows, H = in.hidden_size, GH = kernels.gates * H;
  const Tensor grad_x = in.weight_ih ? call.empty(N, GH) : grads.input;
  const Tensor grad_h = kernels.shared_gradients ? grad_x : call.empty(N, GH);
  const Tensor previous = call.empty(weight_grad ? N : 0, H);
  const Tensor operand = call.empty(kernels.operand_gates ? N : 0, H);
  const bool wide = in.input.scalar_type() == ScalarType::Double;
  const Tensor carry = new_empty(in.input, {in.sizes.states, in.batch, H},
                                 wide ? ScalarType::Double : ScalarType::Float);
  const Backward backward{call.sequence(extras),  data(saved.grad_output), data(saved.grad_state_n),
                          data(saved.grad_cells), data(saved.output),      data(saved.cells),
                          data(saved.reserve),    writable(carry),         writable(grad_x),
                          writable(grad_h),       writable(grads.state),   writable(previous),
                          writable(operand)};
  const Plan plan = call.plan(true);
  if (plan.schedule == Schedule::step)
    backward_by_steps(call, backward, grad_x, grad_h);
  else
    run_persistent(call, plan.layout, backward, call.persistent(plan).backward);
  if (in.weight_ih && input_grad) call.product(grads.input, grad_x, *in.weight_ih);
  if (weight_grad) weight_gradients(call, grads, grad_x, grad_h, previous, operand);
  return grads.tuple();
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
