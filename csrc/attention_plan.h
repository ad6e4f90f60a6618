// How attention's blocks are cut and how one divides its shared memory. Plain host code; the
// kernels are given the result.
#pragma once

#include "attention_arguments.h"
#include "kernels_cuda.h"

namespace fastrnn::cuda {

constexpr int attention_threads = 128, widest_head = 256;

// The passes: each block owns rows of queries, or of keys, and streams the others.
enum class AttentionPass { forward, queries, keys, mask };

// What a warp works on: `rows` by `part` scores at once, in tiles of 16 x 8.
struct AttentionShape {
  int tiles;      // of 16 rows
  int step;       // streamed rows
  int parts = 1;  // of a step, one after the other
  FASTRNN_INLINE constexpr int part() const { return step / parts; }
  FASTRNN_INLINE constexpr int rows() const { return 16 * tiles; }
};

// Kernels are compiled for heads of at most `width` units; so many columns of a result a block
// makes.
FASTRNN_INLINE constexpr int attention_columns(int bytes, int width) {
  return bytes == 8 ? 32 : width < 128 ? width : 128;
}

// Chosen so that sums, scores and their gradients stay in 255 registers.
FASTRNN_INLINE constexpr AttentionShape attention_shape(AttentionPass pass, int bytes, int width) {
  const int columns = attention_columns(bytes, width);
  if (bytes == 8) return {1, 8};
  const bool forward = pass == AttentionPass::forward, keys = pass == AttentionPass::keys;
  if (bytes == 4) return {forward && columns <= 64 ? 2 : 1, 16, keys && columns == 128 ? 2 : 1};
  if (forward) return {2, columns == 128 ? 32 : 64};
  const bool wide = columns == 128 || pass == AttentionPass::mask;
  return {wide ? 1 : 2, 32, keys && columns == 64 ? 2 : 1};
}

// Values from row to row in shared memory: an odd number of 16 bytes, which spares banks.
FASTRNN_INLINE constexpr int attention_stride(int bytes, int width) {
  return (width * bytes / 16 | 1) * 16 / bytes;
}
// Of the first and the second tensor of a pass.
struct AttentionStrides {
  int first, second;
};
FASTRNN_INLINE constexpr AttentionStrides attention_strides(AttentionPass pass, int bytes,
                                                            int width) {
  const bool forward = pass == AttentionPass::forward;
  return {attention_stride(bytes, width),
          attention_stride(bytes, forward ? attention_columns(bytes, width) : width)};
}

// A block's shared memory: its own rows of the first tensor (queries or keys) and but for the
// forward pass of the second (values or the output's gradient), then `stages` times `step` rows of
// the streamed first and second, and if those are queries as many pairs of statistics.
struct AttentionPlan {
  int warps, stages;
  int parts;            // blocks that share a row's columns; of the output, each makes its own
  std::int64_t rows;    // of a block
  int widths[2];        // values of a row that are there, zeros beyond the tensor's own
  std::int64_t shared;  // bytes; 0: does not fit
};

FASTRNN_INLINE constexpr int rounded_up(std::int64_t n, int to) {
  return n > to ? int((n + to - 1) / to * to) : to;  // of rows without values, zeros
}

// `own` and the heads' sizes are of one pair of batch and head.
constexpr AttentionPlan attention_plan(AttentionPass pass, int bytes, int width, std::int64_t own,
                                       std::int64_t size, std::int64_t value_size,
                                       std::int64_t shared_limit) {
  const AttentionShape shape = attention_shape(pass, bytes, width);
  const AttentionStrides strides = attention_strides(pass, bytes, width);
  const int columns = attention_columns(bytes, width), depth = bytes == 2 ? 16 : 16 / bytes;
  const bool forward = pass == AttentionPass::forward;
  const std::int64_t most = forward || value_size > size ? value_size : size;
  AttentionPlan p{};
  p.parts = pass == AttentionPass::mask || most == 0 ? 1 : int((most + columns - 1) / columns);
  for (int i = 0; i < 2; ++i) {
    p.widths[i] = rounded_up(i == 0 ? size : value_size, depth);
    if (pass == AttentionPass::queries || pass == AttentionPass::keys)
      p.widths[i] = p.parts * columns;
    if (forward && i == 1) p.widths[i] = columns;
  }
  const int most_warps = attention_threads / 32;
  const std::int64_t wanted = (own + shape.rows() - 1) / shape.rows();
  for (p.warps = int(wanted < most_warps ? wanted : most_warps); p.warps > 0; --p.warps)
    for (p.stages = pass == AttentionPass::mask ? 1 : 2; p.stages > 0; --p.stages) {
      p.rows = p.warps * shape.rows();
      const int of_sum = bytes == 8 ? 8 : 4;
      p.shared = (p.rows * (strides.first + (forward ? 0 : strides.second)) +
                  p.stages * shape.step * (strides.first + strides.second)) *
                 bytes;
      if (pass == AttentionPass::keys) p.shared += p.stages * shape.step * 2 * of_sum;
      const std::int64_t slopes = p.rows * shape.step * of_sum;
      if (pass == AttentionPass::mask && p.shared < slopes) p.shared = slopes;
      if (p.shared <= shared_limit) return p;
    }
  p.shared = 0;
  return p;
}

}  // namespace fastrnn::cuda
