// The attention operators' arguments, checked, and their results; shared by devices.
// `fastrnn/_attention.py` says what they compute.
#pragma once

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "attention_arguments.h"
#include "checks.h"

namespace fastrnn {

// Tensors whose rows are contiguous, and what the kernels are told of them.
struct AttentionInputs {
  Tensor query, key, value;
  std::optional<Tensor> mask;  // additive and of bfloat16, it is float32 if that is asked for
  Attention arguments;
};

struct AttentionForwardCall {
  AttentionForwardCall(const Tensor& query, const Tensor& key, const Tensor& value,
                       const std::optional<Tensor>& mask, const std::optional<Tensor>& seed,
                       bool is_causal, double dropout_p, double scale, bool wide_mask);

  AttentionInputs in;
  Tensor output, logsumexp;
  AttentionForward arguments;
};

struct AttentionBackwardCall {
  using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;

  AttentionBackwardCall(const Tensor& grad_output, const Tensor& query, const Tensor& key,
                        const Tensor& value, const std::optional<Tensor>& mask,
                        const std::optional<Tensor>& seed, const Tensor& output,
                        const Tensor& logsumexp, bool is_causal, double dropout_p, double scale,
                        bool mask_grad, bool wide_mask);

  AttentionInputs in;
  Tensor statistics;          // [B, heads, Lq, 2], scratch, of logsumexp's dtype
  std::vector<Tensor> given;  // grad_output, output, logsumexp
  Results results;            // gradients of query, key, value and mask
  AttentionBackward arguments;
};

}  // namespace fastrnn
