#include "recurrence.h"

#include <torch/csrc/stable/ops.h>

namespace fastrnn {

const CellSizes& cell_sizes(const std::string& cell) {
  const CellSizes* const sizes = find_cell(cell);
  check(sizes, "no compiled cell is called '", cell, "'");
  return *sizes;
}

std::int64_t projected_size(const Tensor& weight_hr, const std::string& cell,
                            std::int64_t hidden_size) {
  check(cell == "lstm", "weight_hr needs cell lstm, got ", cell);
  check(weight_hr.dim() == 2, "weight_hr must be [P, H], got ", weight_hr);
  const std::int64_t P = weight_hr.size(0);
  check(P > 0 && P <= hidden_size, "weight_hr must have 1 to H = ", hidden_size, " rows, got ", P);
  return P;
}

Inputs checked_inputs(const Tensor& input, const Tensor& state,
                      const std::optional<Tensor>& weight_ih,
                      const std::optional<Tensor>& weight_hh, const std::optional<Tensor>& bias_ih,
                      const std::optional<Tensor>& bias_hh, const std::optional<Tensor>& weight_hr,
                      const std::optional<Tensor>& gains, std::vector<std::int64_t> counts,
                      const std::string& cell) {
  const CellSizes& sizes = cell_sizes(cell);
  check(input.dim() == 2, "input must be [N, I], got ", input);
  check(state.dim() == 3, "state must be [S, B, H], got ", state);
  const std::int64_t rows = input.size(0), batch = state.size(1), H = state.size(2);
  const std::int64_t I = input.size(1), GH = sizes.gates * H;
  check(H > 0, "hidden size must be at least 1, got 0");
  // The backward pass knows an absent weight_ih by its null pointer, which an empty one has too.
  check(!weight_ih || I > 0, "input size must be at least 1, got 0");
  check(weight_ih || !weight_hh || I == GH, "input must be x_proj [N, G*H] = ", Shape{rows, GH},
        ", got ", input);
  if (bias_ih && weight_hh)  // or the weights are packed
    check(weight_ih || gains, "bias_ih must be absent without weight_ih, got ", *bias_ih);
  const auto maybe = [&](const char* name, const std::optional<Tensor>& tensor,
                         const std::vector<std::int64_t>& shape) {
    return tensor ? std::optional<Tensor>(check.tensor(name, *tensor, shape, input)) : std::nullopt;
  };
  const std::int64_t P = weight_hr ? projected_size(*weight_hr, cell, H) : 0;
  check(!gains || cell == "lstm" || cell == "gru", "gains need cell lstm or gru, got ", cell);
  check(!gains || !weight_hr, "gains must be absent with weight_hr, got both");
  check(!counts.empty() && counts[0] == batch, "batch_sizes must begin with B = ", batch, ", got ",
        counts);
  std::int64_t sum = 0, most = batch;
  for (const std::int64_t count : counts) {
    check(count >= 0 && count <= most, "batch_sizes must not increase, got ", counts);
    sum += count, most = count;
  }
  check(sum == rows, "batch_sizes must sum to N = ", rows, ", got ", sum);
  return {check.contiguous("input", input),
          check.tensor("state", state, {sizes.states, batch, H}, input),
          maybe("weight_ih", weight_ih, {GH, I}),
          maybe("weight_hh", weight_hh, {GH, P ? P : H}),
          maybe("bias_ih", bias_ih, {GH}),
          maybe("bias_hh", bias_hh, {GH}),
          maybe("weight_hr", weight_hr, {P, H}),
          maybe("gains", gains, {2 * (GH + (sizes.states - 1) * H)}),
          std::move(counts),
          rows,
          batch,
          I,
          H,
          P,
          sizes};
}

void check_both(const Inputs& one, const Inputs& other) {
  check(one.hidden_size == other.hidden_size, "both directions must have H units, got ",
        one.hidden_size, " and ", other.hidden_size);
}

Inputs checked_inputs(const Tensor& input, const Tensor& state,
                      const std::optional<Tensor>& weight_ih,
                      const std::optional<Tensor>& weight_hh, const std::optional<Tensor>& bias_ih,
                      const std::optional<Tensor>& bias_hh, const std::optional<Tensor>& weight_hr,
                      const std::optional<Tensor>& gains, const Tensor& batch_sizes,
                      const std::string& cell) {
  check(batch_sizes.is_cpu() && batch_sizes.dim() == 1 &&
            batch_sizes.scalar_type() == torch::headeronly::ScalarType::Long,
        "batch_sizes must be a CPU int64 tensor [T], got ", Whole{batch_sizes});
  const Tensor sizes = check.contiguous("batch_sizes", batch_sizes);
  const std::int64_t* const values = sizes.const_data_ptr<std::int64_t>();
  return checked_inputs(input, state, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, gains,
                        std::vector<std::int64_t>(values, values + sizes.size(0)), cell);
}

Extras checked_extras(const Inputs& inputs, const std::optional<Tensor>& resets,
                      const std::optional<Tensor>& seed, const std::optional<Tensor>& sequences,
                      const std::vector<double>& zoneout) {
  using torch::headeronly::ScalarType;
  const auto maybe = [&](const char* name, const std::optional<Tensor>& tensor, ScalarType dtype,
                         std::int64_t count) {
    if (!tensor) return std::optional<Tensor>();
    check(tensor->dim() == 1 && tensor->size(0) == count && tensor->scalar_type() == dtype &&
              tensor->device() == inputs.input.device(),
          name, " must be ", dtype == ScalarType::Bool ? "bool " : "int64 ", Shape{count},
          " on the input's device, got ", Whole{*tensor});
    return std::optional<Tensor>(check.contiguous(name, *tensor));
  };
  Extras extras{maybe("resets", resets, ScalarType::Bool, inputs.rows), seed,
                maybe("sequences", sequences, ScalarType::Long, inputs.batch), Zoneout{}};
  const std::int64_t states = inputs.sizes.states;
  check(zoneout.empty() || std::int64_t(zoneout.size()) == states, "zoneout must have S = ", states,
        " rates or none, got ", zoneout.size());
  Zoneout& z = extras.zoneout;
  z.on = !zoneout.empty();
  for (std::size_t i = 0; i < zoneout.size(); ++i) {
    check(zoneout[i] >= 0 && zoneout[i] <= 1, "zoneout must be in [0, 1], got ", zoneout[i]);
    z.rates[i] = zoneout[i];
  }
  z.drawn = z.on && seed;
  if (z.drawn) {
    check(seed->numel() == 1 && seed->scalar_type() == ScalarType::Long &&
              seed->device() == inputs.input.device(),
          "seed must be int64 with one value on the input's device, got ", Whole{*seed});
    check.held("seed", *seed);
    if (seed->is_cpu()) z.seed = std::uint64_t(*seed->const_data_ptr<std::int64_t>());
  }
  if (extras.sequences) z.sequences = extras.sequences->const_data_ptr<std::int64_t>();
  return extras;
}

std::int64_t reserve_slots(const Inputs& inputs, const Extras& extras) {
  const bool acted_on = extras.zoneout.on || inputs.projected;
  return inputs.sizes.reserve + (acted_on ? inputs.sizes.states : 0) +
         (inputs.gains ? 2 * inputs.sizes.gates : 0);
}

Saved checked_saved(const Inputs& in, const Extras& extras,
                    const std::optional<Tensor>& grad_output,
                    const std::optional<Tensor>& grad_state_n,
                    const std::optional<Tensor>& grad_cells, const Tensor& output,
                    const Tensor& cells, const Tensor& reserve) {
  const std::int64_t N = in.rows, H = in.hidden_size, P = in.output_size(), S = in.sizes.states;
  const auto maybe = [&](const char* name, const std::optional<Tensor>& tensor,
                         const Shape& shape) {
    return tensor ? std::optional<Tensor>(check.tensor(name, *tensor, shape, in.input))
                  : std::nullopt;
  };
  return {maybe("grad_output", grad_output, {N, P}),
          maybe("grad_state_n", grad_state_n, {S, in.batch, H}),
          maybe("grad_cells", grad_cells, {S - 1, N, H}),
          check.tensor("output", output, {N, P}, in.input),
          check.tensor("cells", cells, {S - 1, N, H}, in.input),
          check.tensor("reserve", reserve, {N, reserve_slots(in, extras) * H}, in.input)};
}

Gradients empty_gradients(const Inputs& in, bool input_grad, bool state_grad, bool weight_grad) {
  const auto like = [&](bool wanted, const std::optional<Tensor>& tensor) {
    return wanted && tensor ? new_tensor(*tensor, tensor->sizes()) : new_tensor(in.input, {0});
  };
  // Without weight_ih the projection's gradient is the loop's own result.
  return {like(input_grad || !in.weight_ih, in.input),
          like(state_grad, in.state),
          like(weight_grad, in.weight_ih),
          like(weight_grad, in.weight_hh),
          like(weight_grad, in.bias_ih),
          like(weight_grad, in.bias_hh),
          like(weight_grad, in.weight_hr),
          like(weight_grad, in.gains)};
}

BothGradients of_both(const Gradients& one, const Gradients& other) {
  return {one.input,   one.state,   one.weight_ih,   one.weight_hh,   one.bias_ih,   one.bias_hh,
          other.input, other.state, other.weight_ih, other.weight_hh, other.bias_ih, other.bias_hh};
}

Gradients::Tuple Gradients::tuple(bool input_grad) const {
  const Tensor of_input = input_grad ? input : new_tensor(input, {0});
  return {of_input, state, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, gains};
}

void no_rows(const Gradients& g, const std::optional<Tensor>& grad_state_n) {
  for (Tensor tensor :
       {g.input, g.state, g.weight_ih, g.weight_hh, g.bias_ih, g.bias_hh, g.weight_hr, g.gains})
    torch::stable::zero_(tensor);
  Tensor of_state = g.state;
  if (grad_state_n && of_state.numel() > 0) torch::stable::copy_(of_state, *grad_state_n);
}

const void* data(const std::optional<Tensor>& tensor) {
  return tensor && tensor->numel() ? tensor->const_data_ptr() : nullptr;
}

void* writable(const std::optional<Tensor>& tensor) {
  return tensor && tensor->numel() ? tensor->mutable_data_ptr() : nullptr;
}

Walk::Walk(const std::vector<std::int64_t>& batch_sizes, bool reverse, const bool* resets) {
  const std::int64_t steps = std::int64_t(batch_sizes.size());
  std::vector<std::int64_t> start(steps + 1, 0);
  for (std::int64_t t = 0; t < steps; ++t) start[t + 1] = start[t] + batch_sizes[t];
  step_begin.push_back(0);
  for (std::int64_t i = 0; i < steps; ++i) {
    const std::int64_t t = reverse ? steps - 1 - i : i;
    // Sequences of one step differ in whether they go on to t + 1, and in where they begin anew.
    const std::int64_t longer = t + 1 < steps ? batch_sizes[t + 1] : 0;
    for (const bool goes_on : {true, false}) {
      const std::int64_t begin = goes_on ? 0 : longer, end = goes_on ? longer : batch_sizes[t];
      if (begin == end) continue;
      const std::int64_t earlier = t > 0 ? start[t - 1] + begin : -1;
      const std::int64_t later = goes_on ? start[t + 1] + begin : -1;
      const std::int64_t prev = reverse ? later : earlier, next = reverse ? earlier : later;
      for (std::int64_t from = 0, to = 0; to < end - begin; from = to) {
        const auto reset_at = [&](std::int64_t row) { return resets && row >= 0 && resets[row]; };
        const auto moved = [](std::int64_t row, std::int64_t by) {
          return row < 0 ? row : row + by;
        };
        const bool reset = reset_at(start[t] + begin + from);
        const bool next_reset = reset_at(moved(next, from));
        do ++to;
        while (to < end - begin && reset_at(start[t] + begin + to) == reset &&
               reset_at(moved(next, to)) == next_reset);
        segments.push_back({start[t] + begin + from, begin + from, to - from, moved(prev, from),
                            moved(next, from), t, reset, next_reset});
      }
    }
    step_begin.push_back(std::int64_t(segments.size()));
  }
}

}  // namespace fastrnn
