// The operators fastrnn::masked_attention and its backward on CPU tensors.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "attention.h"
#include "dispatch.h"

namespace fastrnn {

namespace {

constexpr Checks check{"masked_attention"};

std::int64_t work(const Attention& a) {
  return a.batch * a.heads * a.queries * a.keys * (a.size + a.value_size);
}

std::tuple<Tensor, Tensor> masked_attention(const Tensor& query, const Tensor& key,
                                            const Tensor& value, const std::optional<Tensor>& mask,
                                            const std::optional<Tensor>& seed, bool is_causal,
                                            double dropout_p, double scale) {
  check.kernel_dtype(query, true);
  const AttentionForwardCall call(query, key, value, mask, seed, is_causal, dropout_p, scale, true);
  ask_for_large_pages(call.output);
  run(instruction_set().attention(int(query.element_size()))->forward, call.arguments,
      work(call.arguments));
  return {call.output, call.logsumexp};
}

AttentionBackwardCall::Results masked_attention_backward(
    const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& seed, const Tensor& output,
    const Tensor& logsumexp, bool is_causal, double dropout_p, double scale, bool mask_grad) {
  check.kernel_dtype(query, true);
  const AttentionBackwardCall call(grad_output, query, key, value, mask, seed, output, logsumexp,
                                   is_causal, dropout_p, scale, mask_grad, true);
  std::apply([](const auto&... result) { (ask_for_large_pages(result), ...); }, call.results);
  run(instruction_set().attention(int(query.element_size()))->backward, call.arguments,
      work(call.arguments));
  auto [grad_query, grad_key, grad_value, grad_mask] = call.results;
  // The kernels sum it in float32.
  if (mask_grad && call.arguments.bfloat16)
    grad_mask = torch::stable::to(grad_mask, query.scalar_type());
  return {grad_query, grad_key, grad_value, grad_mask};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("masked_attention", TORCH_BOX(&masked_attention));
  m.impl("masked_attention_backward", TORCH_BOX(&masked_attention_backward));
}

}  // namespace fastrnn
