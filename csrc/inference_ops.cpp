// Plain layers and cells without gradients, in as few calls as can be: a small one's step takes a
// few microseconds, each call of torch's around it as many.
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "ops_cpu.h"
#include "text.h"

namespace fastrnn {

namespace {

using Parts = std::vector<Tensor>;

// S parts of the states, contiguous, [.., B, H]; or none: zeros.
Parts checked_parts(const Parts& states, std::int64_t count, const Shape& shape,
                    const Tensor& like) {
  check(states.empty() || std::int64_t(states.size()) == count, "states must be ", count,
        " or none, got ", states.size());
  Parts parts;
  for (const Tensor& state : states) parts.push_back(check.tensor("state", state, shape, like));
  return parts;
}

// Layer `k` from its states to those after the last step, which go into `last`.
Tensor layer(const Tensor& rows, std::vector<std::int64_t> batch_sizes, std::int64_t hidden_size,
             const Tensor* weights, bool bias, bool packed, const std::string& cell,
             const Parts& states, const Parts& last, std::int64_t k) {
  const std::int64_t S = cell_sizes(cell).states, B = batch_sizes[0], H = hidden_size;
  const std::size_t bytes = B * H * rows.element_size();
  const Tensor first = new_tensor(rows, {S, B, H});
  char* const to = bytes ? static_cast<char*>(first.mutable_data_ptr()) : nullptr;
  for (std::int64_t s = 0; s < S && bytes; ++s)
    if (states.empty())
      std::memset(to + s * bytes, 0, bytes);
    else
      std::memcpy(to + s * bytes, static_cast<const char*>(states[s].const_data_ptr()) + k * bytes,
                  bytes);
  std::optional<Tensor> weight_ih, weight_hh, bias_ih, bias_hh;
  if (!packed) weight_ih = weights[0], weight_hh = weights[1];
  if (bias) bias_ih = weights[packed ? 1 : 2], bias_hh = weights[packed ? 2 : 3];
  const Inputs in = checked_inputs(rows, first, weight_ih, weight_hh, bias_ih, bias_hh, {}, {},
                                   std::move(batch_sizes), cell);
  const Extras extras = checked_extras(in, {}, {}, {}, {});
  const Results made = packed ? forward_packed(in, extras, weights[0], cell, false, false)
                              : forward(in, extras, cell, false, false);
  const char* const from =
      bytes ? static_cast<const char*>(made.state_n.const_data_ptr()) : nullptr;
  for (std::int64_t s = S - std::int64_t(last.size()); s < S && bytes; ++s) {
    const Tensor& end = last[s - S + last.size()];
    std::memcpy(static_cast<char*>(end.mutable_data_ptr()) + k * bytes, from + s * bytes, bytes);
  }
  return made.output;
}

// weights: of each layer weight_ih and weight_hh, or both packed, and with `bias` bias_ih, bias_hh.
Parts recurrence_layers(const Tensor& input, const Parts& states, const Parts& weights,
                        std::int64_t steps, std::int64_t hidden_size, const Text& cell, bool bias,
                        bool packed) {
  const std::size_t each = (packed ? 1 : 2) + (bias ? 2 : 0);
  check(!weights.empty() && weights.size() % each == 0, "weights must be ", each,
        " tensors for each layer, got ", weights.size(), " in all");
  check(hidden_size > 0, "hidden size must be at least 1, got ", hidden_size);
  check(input.dim() == 2 && steps > 0 && input.size(0) % steps == 0,
        "input must be [T * B, I] with T = ", steps, ", got ", input);
  const std::int64_t L = std::int64_t(weights.size() / each), B = input.size(0) / steps;
  const std::int64_t S = cell_sizes(cell).states;
  const Parts parts = checked_parts(states, S, {L, B, hidden_size}, input);
  Parts last;
  for (std::int64_t s = 0; s < S; ++s) last.push_back(new_tensor(input, {L, B, hidden_size}));
  Tensor rows = input;
  for (std::int64_t k = 0; k < L; ++k)
    rows = layer(rows, std::vector<std::int64_t>(steps, B), hidden_size, &weights[k * each], bias,
                 packed, cell, parts, last, k);
  last.insert(last.begin(), rows);
  return last;
}

// The states after one step, the first of which is its output.
Parts recurrence_step(const Tensor& input, const Parts& states, const Parts& weights,
                      const Text& cell) {
  check(input.dim() == 2 && (weights.size() == 2 || weights.size() == 4) && weights[1].dim() == 2,
        "input must be [B, I], with two weights or four, got ", input, " and ", weights.size());
  const std::int64_t S = cell_sizes(cell).states, B = input.size(0), H = weights[1].size(1);
  const Parts parts = checked_parts(states, S, {B, H}, input);
  Parts next;
  for (std::int64_t s = 1; s < S; ++s) next.push_back(new_tensor(input, {B, H}));
  const Tensor output =
      layer(input, {B}, H, weights.data(), weights.size() > 2, false, cell, parts, next, 0);
  next.insert(next.begin(), output);
  return next;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("recurrence_layers", TORCH_BOX(&recurrence_layers));
  m.impl("recurrence_step", TORCH_BOX(&recurrence_step));
}

}  // namespace fastrnn
