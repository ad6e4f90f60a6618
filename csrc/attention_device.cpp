#ifdef FASTRNN_CUDA
#include "attention_device.h"

#include "attention_plan.h"
#include "recurrence_device.h"

namespace fastrnn::cuda {

namespace {

constexpr Checks check{"masked_attention"};

void within_limits(const Attention& a) {
  const std::int64_t most = a.size > a.value_size ? a.size : a.value_size;
  check(most <= widest_head, "the CUDA kernels take heads of at most ", widest_head, " units, got ",
        most);
}

void queued(int error, const Device& device) {
  check(error == 0, "a CUDA kernel could not be launched: ", device.error_text(error));
}

}  // namespace

std::tuple<Tensor, Tensor> masked_attention(const Tensor& query, const Tensor& key,
                                            const Tensor& value, const std::optional<Tensor>& mask,
                                            const std::optional<Tensor>& seed, bool is_causal,
                                            double dropout_p, double scale) {
  const Dtype dtype = dtype_of(query);
  const AttentionForwardCall call(query, key, value, mask, seed, is_causal, dropout_p, scale,
                                  false);
  within_limits(call.arguments);
  const auto [device, guard] = current(query);
  queued(attention_forward(dtype, call.arguments, device.offer.shared_memory, device.stream),
         device);
  return {call.output, call.logsumexp};
}

AttentionBackwardCall::Results masked_attention_backward(
    const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& seed, const Tensor& output,
    const Tensor& logsumexp, bool is_causal, double dropout_p, double scale, bool mask_grad) {
  const Dtype dtype = dtype_of(query);
  const AttentionBackwardCall call(grad_output, query, key, value, mask, seed, output, logsumexp,
                                   is_causal, dropout_p, scale, mask_grad, false);
  within_limits(call.arguments);
  const auto [device, guard] = current(query);
  const AttentionGradients arguments{call.arguments, call.statistics.mutable_data_ptr()};
  queued(attention_backward(dtype, arguments, device.offer.shared_memory, device.stream), device);
  return call.results;
}

}  // namespace fastrnn::cuda
#endif
