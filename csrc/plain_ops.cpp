// Plain layers and cells over padded rows, in as few calls as can be: a small one's step takes a
// few microseconds, each call of torch's around it as many.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <deque>

#include "passes.h"
#include "text.h"

namespace fastrnn {

namespace {

using Parts = std::vector<Tensor>;

// What both operators are given: rows [T, B, I] and S states [L*D, B, H] of L layers of D
// directions, or of a cell, which is one layer's one step, [B, I] and [B, H]. No states are zeros.
struct Layers {
  const std::string& cell;
  const bool bias, packed, step;
  // Of each layer and direction weight_ih and weight_hh, or both packed; maybe the biases.
  const Parts& weights;
  const std::int64_t each, G, S, D, LD, H, T, B;
  const Tensor rows;  // the input, contiguous
  const Parts states;

  Layers(const Tensor& input, const Parts& states, const Parts& weights, std::int64_t hidden_size,
         const std::string& cell, bool bidirectional, bool bias, bool packed)
      : cell(cell),
        bias(bias),
        packed(packed),
        step(input.dim() == 2),
        weights(weights),
        each((packed ? 1 : 2) + (bias ? 2 : 0)),
        G(cell_sizes(cell).gates),
        S(cell_sizes(cell).states),
        D(bidirectional ? 2 : 1),
        LD(std::int64_t(weights.size()) / each),
        H(hidden_size),
        T(step || input.dim() != 3 ? 1 : input.size(0)),
        B(input.dim() < 2 ? 0 : input.size(-2)),
        rows(checked_rows(input)),
        states(parts("state", states)) {}

  Shape state_shape() const { return step ? Shape{B, H} : Shape{LD, B, H}; }
  Shape output_shape() const { return step ? Shape{B, H} : Shape{T, B, D * H}; }

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

  // Layer and direction `k` of S parts, one after the other [S, B, H].
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

  // Each direction's output, [T*B, H], beside the other's.
  Tensor joined(const Tensor& one, const Tensor& other) const {
    const Tensor made = new_rows(2 * H);
    copy_columns(one, 0, made, 0);
    copy_columns(other, 0, made, H);
    return made;
  }
  // The way back, for direction `d`.
  Tensor part_of(const Tensor& joined, std::int64_t d) const {
    const Tensor made = new_rows(H);
    copy_columns(joined, d * H, made, 0);
    return made;
  }

  // How many of `left` layers and directions run at once: both directions; or as many layers as
  // there are threads for, each having as many as it has alone.
  std::int64_t at_once(std::int64_t left) const {
    if (D == 2) return D;
    if (T == 1 || !worth_threads(T * B * G * H * H)) return 1;
    return std::clamp<std::int64_t>(most_threads() / useful_threads(B * H * H), 1, left);
  }

  // Of layer and direction `k` over the output of the layer below, or the input.
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

  Tensor new_rows(std::int64_t columns) const {
    const Tensor made = new_tensor(rows, {T * B, columns});
    ask_for_large_pages(made);
    return made;
  }

  // H columns of each row, from column `first` of `from` to column `place` of `to`.
  void copy_columns(const Tensor& from, std::int64_t first, const Tensor& to,
                    std::int64_t place) const {
    if (T * B == 0) return;
    constexpr std::int64_t grain_bytes = 1 << 16;
    const std::int64_t size = std::int64_t(rows.element_size()), bytes = H * size;
    const std::int64_t read = from.size(1) * size, written = to.size(1) * size;
    const char* const source = static_cast<const char*>(from.const_data_ptr()) + first * size;
    char* const target = static_cast<char*>(to.mutable_data_ptr()) + place * size;
    torch::stable::parallel_for(0, T * B, grain_bytes / bytes + 1,
                                [&](std::int64_t row, std::int64_t end) {
                                  for (; row < end; ++row)
                                    std::memcpy(target + row * written, source + row * read, bytes);
                                });
  }

  Tensor checked_rows(const Tensor& input) const {
    check(LD > 0 && std::int64_t(weights.size()) % (D * each) == 0, "weights must be ", D * each,
          " tensors for each layer, got ", weights.size(), " in all");
    check(H > 0, "hidden size must be at least 1, got ", H);
    check(input.dim() == (step && LD == 1 ? 2 : 3) && T > 0, "input must be [T, B, I] with T > 0",
          LD == 1 ? " or [B, I], got " : ", got ", input);
    return check.contiguous("input", input);
  }
};

template <class Pass>
void run(const Layers& layers, const std::deque<Pass>& passes) {
  if (layers.D == 2)
    run_both(passes[0], passes[1]);
  else if (passes.size() == 1)
    run(passes[0]);
  else
    run_wave(passes);
}

// The output and the last states; then, with `save`, each layer's and direction's cells and
// reserve, followed by its output but where that is the first result.
Parts recurrence_layers(const Tensor& input, const Parts& states, const Parts& weights,
                        std::int64_t hidden_size, const Text& cell, bool bidirectional, bool bias,
                        bool packed, bool save) {
  check(!packed || !save, "packed weights have no gradients, got save");
  const Layers layers(input, states, weights, hidden_size, cell, bidirectional, bias, packed);
  const Parts last = layers.new_parts(layers.S);
  Parts saved;
  Tensor below = layers.rows;
  for (std::int64_t k = 0; k < layers.LD;) {
    std::deque<ForwardPass> passes;
    const std::int64_t end = k + layers.at_once(layers.LD - k);
    for (std::int64_t i = k; i < end; ++i) {
      std::optional<Tensor> pack;
      if (packed) pack = weights[i * layers.each];
      const Tensor rows = bidirectional || i == k ? below : passes.back().output;
      passes.emplace_back(layers.inputs(i, rows), Extras{}, cell, bidirectional && i > k, save,
                          pack);
    }
    run(layers, passes);
    for (const ForwardPass& pass : passes) {
      layers.scatter(pass.state_n, last, k++);
      saved.insert(saved.end(), {pass.cells, pass.reserve, pass.output});
    }
    below = bidirectional ? layers.joined(passes[0].output, passes[1].output) : saved.back();
  }
  Parts results{check.in_shape("output", below, layers.output_shape())};
  results.insert(results.end(), last.begin(), last.end());
  if (!bidirectional) saved.pop_back();
  if (save) results.insert(results.end(), saved.begin(), saved.end());
  return results;
}

// saved: of each layer and direction the cells, the reserve and the output. The gradients of
// `input`, `states` and `weights`; one that is not wanted is empty.
Parts recurrence_layers_backward(const std::optional<Tensor>& grad_output, const Parts& grad_states,
                                 const Tensor& input, const Parts& states, const Parts& weights,
                                 const Parts& saved, std::int64_t hidden_size, const Text& cell,
                                 bool bidirectional, bool bias, bool input_grad, bool state_grad,
                                 bool weight_grad) {
  const Layers layers(input, states, weights, hidden_size, cell, bidirectional, bias, false);
  const std::int64_t D = layers.D, rows = layers.T * layers.B, H = layers.H;
  check(std::int64_t(saved.size()) == 3 * layers.LD, "saved must have three tensors of each layer",
        bidirectional ? " and direction, got " : ", got ", saved.size());
  const Parts given = layers.parts("grad_state", grad_states);
  const Parts of_states = layers.new_parts(state_grad ? states.size() : 0);
  Parts of_weights(weights.size(), input);
  std::optional<Tensor> sent;
  if (grad_output)
    sent = check.in_shape("grad_output",
                          check.tensor("grad_output", *grad_output, layers.output_shape(), input),
                          {rows, D * H});
  const auto output = [&](std::int64_t k) {
    const Tensor flat =
        check.in_shape("output", check.contiguous("output", saved[3 * k + 2]), {rows, H});
    return check.tensor("output", flat, {rows, H}, layers.rows);
  };
  for (std::int64_t k = layers.LD; k > 0;) {
    const std::int64_t end = k;
    k -= layers.at_once(end);
    Tensor below = layers.rows;
    if (k > 0) below = bidirectional ? layers.joined(output(k - 2), output(k - 1)) : output(k - 1);
    std::deque<BackwardPass> passes;
    // From the last layer or direction on.
    for (std::int64_t i = end - 1; i >= k; --i) {
      const Inputs in = layers.inputs(i, bidirectional || i == k ? below : output(i - 1));
      std::optional<Tensor> of_output = sent, of_ends;
      if (bidirectional && sent) of_output = layers.part_of(*sent, i - k);
      if (!bidirectional && !passes.empty()) of_output = passes.back().grads.input;
      if (!given.empty()) of_ends = layers.gathered(given, i);
      const Saved kept =
          checked_saved(in, {}, of_output, of_ends, {}, output(i), saved[3 * i], saved[3 * i + 1]);
      const bool below_wants = (bidirectional ? k : i) > 0 || input_grad;
      passes.emplace_back(in, Extras{}, kept, cell, bidirectional && i > k, below_wants,
                          !of_states.empty(), weight_grad);
    }
    run(layers, passes);
    for (std::int64_t i = k; i < end; ++i) {
      const Gradients& grads = passes[end - 1 - i].grads;
      layers.scatter(grads.state, of_states, i);
      const Tensor each[] = {grads.weight_ih, grads.weight_hh, grads.bias_ih, grads.bias_hh};
      std::copy_n(each, layers.each, of_weights.begin() + i * layers.each);
    }
    sent = passes.back().grads.input;
    // The stable ABI has no sum of two.
    if (bidirectional) sent = torch::stable::subtract(*sent, passes[0].grads.input, -1);
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
