// The operator fastrnn::linear_cross_entropy on CPU tensors; `fastrnn/loss.py` holds its default.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "checks.h"
#include "dispatch.h"

namespace fastrnn {

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_cross_entropy(
    const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias,
    const Tensor& target, std::int64_t ignore_index, double label_smoothing, bool mean,
    bool bfloat16, bool gradients) {
  using torch::headeronly::ScalarType;
  constexpr Checks check{"linear_cross_entropy"};
  check.kernel_dtype(hidden);
  check(!bfloat16 || hidden.scalar_type() == ScalarType::Float,
        "products of bfloat16 need float32 tensors");
  check(hidden.dim() == 2 && weight.dim() == 2 && target.dim() == 1,
        "hidden must be [M, K], weight [V, K] and target [M]");
  const std::int64_t M = hidden.size(0), K = hidden.size(1), V = weight.size(0);
  const Tensor h = check.tensor("hidden", hidden, {M, K}, hidden);
  const Tensor w = check.tensor("weight", weight, {V, K}, hidden);
  std::optional<Tensor> b;
  if (bias) b = check.tensor("bias", *bias, {V}, hidden);
  check(target.is_cpu() && target.scalar_type() == ScalarType::Long && target.size(0) == M,
        "target must be a CPU int64 tensor [M] = [", M, "]");
  check(V > 0 && K > 0, "weight must have at least one row and column, got [", V, ", ", K, "]");
  const Tensor t = check.contiguous("target", target);
  const std::int64_t* targets = t.const_data_ptr<std::int64_t>();
  std::int64_t counted = 0;
  for (std::int64_t row = 0; row < M; ++row) {
    if (targets[row] == ignore_index) continue;
    ++counted;
    check(targets[row] >= 0 && targets[row] < V, "target must be in [0, ", V, "), got ",
          targets[row]);
  }
  const auto empty = [&] { return new_tensor(h, {0}); };
  Tensor losses = new_tensor(h, {M});
  Tensor grad_hidden = gradients ? new_tensor(h, h.sizes()) : empty();
  Tensor grad_weight = gradients ? new_tensor(w, w.sizes()) : empty();
  ask_for_large_pages(grad_weight);
  Tensor grad_bias = gradients && b ? new_tensor(*b, b->sizes()) : empty();
  if (M > 0) {
    // As in torch, the mean over no rows is 0 / 0.
    const double scale = mean ? 1. / double(counted) : 1.;
    const CrossEntropy arguments{M,
                                 K,
                                 V,
                                 h.const_data_ptr(),
                                 w.const_data_ptr(),
                                 b ? b->const_data_ptr() : nullptr,
                                 targets,
                                 ignore_index,
                                 label_smoothing,
                                 scale,
                                 losses.mutable_data_ptr(),
                                 gradients ? grad_hidden.mutable_data_ptr() : nullptr,
                                 gradients ? grad_weight.mutable_data_ptr() : nullptr,
                                 gradients && b ? grad_bias.mutable_data_ptr() : nullptr};
    const int bytes = bfloat16 ? 2 : int(h.element_size());
    run(*instruction_set().cross_entropy(bytes), arguments, M * K * V);
  } else {
    torch::stable::zero_(grad_weight);
    torch::stable::zero_(grad_bias);
  }
  return {losses, grad_hidden, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("linear_cross_entropy", TORCH_BOX(&linear_cross_entropy));
}

}  // namespace fastrnn
