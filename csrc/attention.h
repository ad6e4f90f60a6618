// The attention operators' arguments, checked; shared by devices.
#pragma once

#include <optional>

#include "checks.h"
#include "kernels_cpu.h"

namespace fastrnn {

// Tensors whose rows are contiguous, and what the kernels are told of them.
struct AttentionInputs {
  Tensor query, key, value;
  std::optional<Tensor> mask;
  Attention arguments;
};

AttentionInputs checked_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                  const std::optional<Tensor>& mask,
                                  const std::optional<Tensor>& seed, bool is_causal,
                                  double dropout_p, double scale);

// The place and strides of a [B, heads, L, width] tensor; 0 along axes of one.
Heads heads_of(const Tensor& tensor);

}  // namespace fastrnn
