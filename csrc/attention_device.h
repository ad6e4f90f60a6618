// The attention operators on a device; as in recurrence_device.h, whoever links
// attention_device.cpp brings the device and its kernels.
#pragma once

#include "attention.h"

namespace fastrnn::cuda {

std::tuple<Tensor, Tensor> masked_attention(const Tensor& query, const Tensor& key,
                                            const Tensor& value, const std::optional<Tensor>& mask,
                                            const std::optional<Tensor>& seed, bool is_causal,
                                            double dropout_p, double scale);

AttentionBackwardCall::Results masked_attention_backward(
    const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& seed, const Tensor& output,
    const Tensor& logsumexp, bool is_causal, double dropout_p, double scale, bool mask_grad);

}  // namespace fastrnn::cuda
