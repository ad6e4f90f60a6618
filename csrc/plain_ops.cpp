// Plain layers and cells over padded rows, in as few calls as can be: a small one's step takes a
// few microseconds, each call of torch's around it as many.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>

#include "passes.h"
#include "text.h"

namespace fastrnn {

namespace {

using Parts = std::vector<Tensor>;

// What both operators are given: rows [T, B, I] and S states [L, B, H], or of a cell, which is one
// layer's one step, [B, I] and [B, H]. No states are zeros.
struct Layers {
  const std::string& cell;
  const bool bias, packed, step;
  const Parts& weights;  // of each layer weight_ih and weight_hh, or both packed; maybe the biases
  const std::int64_t each, S, L, H, T, B;
  const Tensor rows;  // the input, contiguous
  const Parts states;

  Layers(const Tensor& input, const Parts& states, const Parts& weights, std::int64_t hidden_size,
         const std::string& cell, bool bias, bool packed)
      : cell(cell),
        bias(bias),
        packed(packed),
        step(input.dim() == 2),
        weights(weights),
        each((packed ? 1 : 2) + (bias ? 2 : 0)),
        S(cell_sizes(cell).states),
        L(std::int64_t(weights.size()) / each),
        H(hidden_size),
        T(step || input.dim() != 3 ? 1 : input.size(0)),
        B(input.dim() < 2 ? 0 : input.size(-2)),
        rows(checked_rows(input)),
        states(parts("state", states)) {}

  Shape state_shape() const { return step ? Shape{B, H} : Shape{L, B, H}; }
  Shape output_shape() const { return step ? Shape{B, H} : Shape{T, B, H}; }

  // One tensor of each of the S states, contiguous; or none.
  Parts parts(const char* name, const Parts& given) const {
    check(given.empty() || std::int64_t(given.size()) == S, name, "s must be ", S, " or none, got ",
          given.size());
    Parts parts;
    for (const Tensor& part : given) parts.push_back(check.tensor(name, part, state_shape(), rows));
    return parts;
  }
  Parts new_parts(std::size_t count) const {
    Parts parts;
    while (parts.size() < count) parts.push_back(new_tensor(rows, state_shape()));
    return parts;
  }

  // Layer `k` of S parts, side by side [S, B, H].
  Tensor gathered(const Parts& parts, std::int64_t k) const {
    const Tensor made = new_tensor(rows, {S, B, H});
    const std::size_t bytes = part_bytes();
    char* const to = bytes ? static_cast<char*>(made.mutable_data_ptr()) : nullptr;
    for (std::int64_t s = 0; s < S && bytes; ++s)
      if (parts.empty())
        std::memset(to + s * bytes, 0, bytes);
      else
        std::memcpy(to + s * bytes, static_cast<const char*>(parts[s].const_data_ptr()) + k * bytes,
                    bytes);
    return made;
  }
  // The way back.
  void scatter(const Tensor& gathered, const Parts& parts, std::int64_t k) const {
    const std::size_t bytes = part_bytes();
    for (std::size_t s = 0; s < parts.size() && bytes; ++s)
      std::memcpy(static_cast<char*>(parts[s].mutable_data_ptr()) + k * bytes,
                  static_cast<const char*>(gathered.const_data_ptr()) + s * bytes, bytes);
  }

  // Of layer `k` over the output of the layer below, or the input.
  Inputs inputs(std::int64_t k, const Tensor& below) const {
    const Tensor* const w = &weights[k * each];
    std::optional<Tensor> weight_ih, weight_hh, bias_ih, bias_hh;
    if (!packed) weight_ih = w[0], weight_hh = w[1];
    if (bias) bias_ih = w[each - 2], bias_hh = w[each - 1];
    return checked_inputs(check.in_shape("input", below, {T * B, below.size(-1)}),
                          gathered(states, k), weight_ih, weight_hh, bias_ih, bias_hh, {}, {},
                          std::vector<std::int64_t>(T, B), cell);
  }

 private:
  std::size_t part_bytes() const { return B * H * rows.element_size(); }

  Tensor checked_rows(const Tensor& input) const {
    check(L > 0 && std::int64_t(weights.size()) % each == 0, "weights must be ", each,
          " tensors for each layer, got ", weights.size(), " in all");
    check(H > 0, "hidden size must be at least 1, got ", H);
    check(input.dim() == (step && L == 1 ? 2 : 3) && T > 0, "input must be [T, B, I] with T > 0",
          L == 1 ? " or [B, I], got " : ", got ", input);
    return as_contiguous(input);
  }
};

// The output and the last states; then, with `save`, each layer's cells and reserve, followed by
// its output but for the last one's.
Parts recurrence_layers(const Tensor& input, const Parts& states, const Parts& weights,
                        std::int64_t hidden_size, const Text& cell, bool bias, bool packed,
                        bool save) {
  check(!packed || !save, "packed weights have no gradients, got save");
  const Layers layers(input, states, weights, hidden_size, cell, bias, packed);
  const Parts last = layers.new_parts(layers.S);
  Parts saved;
  Tensor below = layers.rows;
  for (std::int64_t k = 0; k < layers.L; ++k) {
    const Inputs in = layers.inputs(k, below);
    std::optional<Tensor> pack;
    if (packed) pack = weights[k * layers.each];
    const ForwardPass pass(in, {}, cell, false, save, pack);
    run(pass);
    layers.scatter(pass.state_n, last, k);
    saved.insert(saved.end(), {pass.cells, pass.reserve, pass.output});
    below = pass.output;
  }
  Parts results{check.in_shape("output", below, layers.output_shape())};
  results.insert(results.end(), last.begin(), last.end());
  if (save) results.insert(results.end(), saved.begin(), saved.end() - 1);
  return results;
}

// saved: the forward pass's, and the output. The gradients of `input`, `states` and `weights`; one
// that is not wanted is empty.
Parts recurrence_layers_backward(const std::optional<Tensor>& grad_output, const Parts& grad_states,
                                 const Tensor& input, const Parts& states, const Parts& weights,
                                 const Parts& saved, std::int64_t hidden_size, const Text& cell,
                                 bool bias, bool input_grad, bool state_grad, bool weight_grad) {
  const Layers layers(input, states, weights, hidden_size, cell, bias, false);
  const std::int64_t L = layers.L, rows = layers.T * layers.B, H = layers.H;
  check(std::int64_t(saved.size()) == 3 * L, "saved must have three tensors of each layer, got ",
        saved.size());
  const Parts given = layers.parts("grad_state", grad_states);
  const Parts of_states = layers.new_parts(state_grad ? states.size() : 0);
  Parts of_weights(weights.size(), input);
  std::optional<Tensor> sent;
  if (grad_output)
    sent = check.in_shape("grad_output",
                          check.tensor("grad_output", *grad_output, layers.output_shape(), input),
                          {rows, H});
  for (std::int64_t k = L; k-- > 0;) {
    const Inputs in = layers.inputs(k, k > 0 ? as_contiguous(saved[3 * k - 1]) : layers.rows);
    std::optional<Tensor> of_ends;
    if (!given.empty()) of_ends = layers.gathered(given, k);
    const Tensor output = check.in_shape("output", as_contiguous(saved[3 * k + 2]), {rows, H});
    const Saved kept =
        checked_saved(in, {}, sent, of_ends, {}, output, saved[3 * k], saved[3 * k + 1]);
    const BackwardPass pass(in, {}, kept, cell, false, k > 0 || input_grad, !of_states.empty(),
                            weight_grad);
    run(pass);
    const Gradients& grads = pass.grads;
    layers.scatter(grads.state, of_states, k);
    const Tensor each[] = {grads.weight_ih, grads.weight_hh, grads.bias_ih, grads.bias_hh};
    std::copy_n(each, layers.each, of_weights.begin() + k * layers.each);
    sent = grads.input;
  }
  Parts results{input_grad ? check.in_shape("grad_input", *sent, shape_of(input)) : *sent};
  for (std::size_t s = 0; s < states.size(); ++s)
    results.push_back(state_grad ? of_states[s] : new_tensor(input, {0}));
  results.insert(results.end(), of_weights.begin(), of_weights.end());
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("recurrence_layers", TORCH_BOX(&recurrence_layers));
  m.impl("recurrence_layers_backward", TORCH_BOX(&recurrence_layers_backward));
}

}  // namespace fastrnn
