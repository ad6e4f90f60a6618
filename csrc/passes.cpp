#include "passes.h"

#include <utility>

namespace fastrnn {

namespace {

std::optional<Tensor> checked_packed(const Inputs& in, const std::optional<Tensor>& packed,
                                     const std::string& cell) {
  if (!packed) return packed;
  const Weights weights{in.input_size, in.hidden_size, in.projected};
  const std::int64_t bytes = kernels_for(cell, in.input).pack.workspace(weights, 1);
  return check.tensor("packed", *packed, {bytes / std::int64_t(in.input.element_size())}, in.input);
}

}  // namespace

ForwardPass::ForwardPass(Inputs inputs, const Extras& with, const std::string& cell, bool reverse,
                         bool save, const std::optional<Tensor>& weights)
    : in(std::move(inputs)),
      extras(with),
      packed(checked_packed(in, weights, cell)),
      output(new_tensor(in.input, {in.rows, in.output_size()})),
      state_n(copied(in.state)),
      cells(new_tensor(in.input, {in.sizes.states - 1, save ? in.rows : 0, in.hidden_size})),
      reserve(new_tensor(
          in.input, {save && !packed ? in.rows : 0, reserve_slots(in, extras) * in.hidden_size})),
      walk(in.batch_sizes, reverse, extras.reset_rows()),
      kernel(layer_kernels(cell, in.input, in.projected || in.gains).forward),
      arguments{sequence(in, walk, extras),
                packed ? static_cast<char*>(packed->mutable_data_ptr()) : nullptr,
                packed || in.weight_ih,
                output.mutable_data_ptr(),
                state_n.mutable_data_ptr(),
                save ? cells.mutable_data_ptr() : nullptr,
                save && !packed ? reserve.mutable_data_ptr() : nullptr} {
  for (const Tensor& t : {output, cells, reserve}) ask_for_large_pages(t);
}

BackwardPass::BackwardPass(Inputs inputs, const Extras& with, const Saved& kept,
                           const std::string& cell, bool reverse, bool input_grad, bool state_grad,
                           bool weight_grad)
    : in(std::move(inputs)),
      extras(with),
      saved(kept),
      grads(empty_gradients(in, input_grad, state_grad, weight_grad)),
      walk(in.batch_sizes, reverse, extras.reset_rows()),
      kernel(layer_kernels(cell, in.input, in.projected || in.gains).backward),
      arguments{sequence(in, walk, extras),     data(saved.grad_output),
                data(saved.grad_state_n),       data(saved.grad_cells),
                saved.output.const_data_ptr(),  saved.cells.const_data_ptr(),
                saved.reserve.const_data_ptr(), writable(grads.input),
                writable(grads.state),          writable(grads.weight_ih),
                writable(grads.weight_hh),      writable(grads.bias_ih),
                writable(grads.bias_hh),        writable(grads.weight_hr),
                writable(grads.gains)} {
  for (const Tensor& t : {grads.input, grads.weight_ih, grads.weight_hh}) ask_for_large_pages(t);
}

}  // namespace fastrnn
