// What attention's kernels are given, on every device. No torch: pointers and strides.
#pragma once

#include <cstdint>

namespace fastrnn {

// A tensor [B, heads, L, ..] whose rows are contiguous; the strides count values and are 0 along
// an axis it is broadcast along.
struct Heads {
  void* data;
  std::int64_t batch, head, row;
};

enum class Mask { none, boolean, additive };

// softmax(scale Q K^T + mask) V of every head.
struct Attention {
  std::int64_t batch, heads, queries, keys, size, value_size;  // B, heads, Lq, Lk, E, D
  Heads query, key, value;                                     // rows of E, E and D
  Mask mask_kind;
  Heads mask;                // bytes (0: do not attend) or values to add
  std::int64_t mask_column;  // its stride along the keys, 1 or 0
  bool causal, bfloat16;     // the latter: all tensors but an additive mask and statistics, on CPUs
  double scale;
  double dropout;               // 0: none
  std::uint32_t dropped_below;  // random words that take a weight away
  const std::int64_t* seed;     // one value, on the kernels' device; null: none
};

struct AttentionForward : Attention {
  Heads output;     // rows of D
  void* logsumexp;  // [B, heads, Lq]; +inf where a row attends to nothing. CUDA: of the sums' type
};

struct AttentionBackward : Attention {
  Heads grad_output, output;
  const void* logsumexp;
  Heads grad_query, grad_key, grad_value;
  Heads grad_mask;  // null data: not wanted
  std::int64_t grad_mask_column;
};

}  // namespace fastrnn
