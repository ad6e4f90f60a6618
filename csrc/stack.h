// What the operators of layers one above the other are given.
#pragma once

#include "recurrence.h"

namespace fastrnn {

struct Stack {
  const std::vector<Tensor>& tensors;  // of each layer: state, weight_ih, weight_hh, its biases
  const Tensor& batch_sizes;
  const std::string& cell;
  const std::size_t each, layers;

  Stack(const std::vector<Tensor>& tensors, const Tensor& batch_sizes, const std::string& cell,
        bool bias)
      : tensors(tensors),
        batch_sizes(batch_sizes),
        cell(cell),
        each(bias ? 5 : 3),
        layers(tensors.size() / each) {
    check(layers > 0 && tensors.size() % each == 0, "layers must have ", each,
          " tensors each, got ", tensors.size(), " in all");
  }

  // rows: the output of the layer below, or the input.
  Inputs inputs(std::size_t layer, const Tensor& rows) const {
    const Tensor* const t = &tensors[layer * each];
    std::optional<Tensor> bias_ih, bias_hh;
    if (each > 3) bias_ih = t[3], bias_hh = t[4];
    return checked_inputs(rows, t[0], t[1], t[2], bias_ih, bias_hh, {}, {}, batch_sizes, cell);
  }
};

// The gradients that a stack's backward operator is given: each layer's last states', or none.
inline void check_stack_gradients(const Stack& stack, const std::vector<Tensor>& grad_state_n,
                                  const std::vector<Tensor>& saved) {
  check(saved.size() == 3 * stack.layers, "saved must have three tensors of each layer, got ",
        saved.size());
  check(grad_state_n.empty() || grad_state_n.size() == stack.layers,
        "grad_state_n must be of every layer or none, got ", grad_state_n.size());
}

}  // namespace fastrnn
