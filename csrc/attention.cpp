#include "attention.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>

namespace fastrnn {

namespace {

using torch::headeronly::ScalarType;
constexpr Checks check{"masked_attention"};

// [B, heads, L, width] with contiguous rows.
Tensor with_rows(const char* name, const Tensor& tensor, const Shape& shape, const Tensor& query) {
  check(shape_of(tensor) == shape, name, " must be ", shape, ", got ", tensor);
  check(tensor.scalar_type() == query.scalar_type(), name, " must have the query's dtype");
  check(tensor.device() == query.device(), name, " must be on the query's device");
  check.held(name, tensor);
  return tensor.size(3) <= 1 || tensor.stride(3) == 1 ? tensor : torch::stable::contiguous(tensor);
}

std::int64_t column_stride(const Tensor& tensor) {
  return tensor.size(3) == 1 ? 0 : tensor.stride(3);
}

// A result for rows of `width`, its heads inside its rows in memory where they are so in `like`:
// the views that torch.nn's projections take need no copy then.
Tensor empty_rows(const Tensor& like, std::int64_t width) {
  const std::int64_t B = like.size(0), heads = like.size(1), L = like.size(2);
  if (like.stride(1) >= like.stride(2)) return new_tensor(like, {B, heads, L, width});
  const auto stride = [](std::int64_t inner, std::int64_t size) {
    return inner * std::max<std::int64_t>(size, 1);  // as torch's, of empty tensors too
  };
  const std::int64_t head = stride(1, width), row = stride(head, heads);
  return new_strided(like, {B, heads, L, width}, {stride(row, L), head, row, 1},
                     like.scalar_type());
}

// [B, heads, Lq, *each]: what is known of a query, in what the kernels sum in.
Tensor empty_statistics(const AttentionInputs& in, const Shape& each) {
  const Attention& a = in.arguments;
  Shape shape{a.batch, a.heads, a.queries};
  shape.insert(shape.end(), each.begin(), each.end());
  const bool wide = in.query.scalar_type() == ScalarType::Double;
  return new_tensor(in.query, shape, wide ? ScalarType::Double : ScalarType::Float);
}

// The place and strides of a [B, heads, L, width] tensor; 0 along axes of one.
Heads heads_of(const Tensor& tensor) {
  const auto stride = [&](int axis) { return tensor.size(axis) == 1 ? 0 : tensor.stride(axis); };
  return {tensor.data_ptr(), stride(0), stride(1), stride(2)};
}

AttentionInputs checked(const Tensor& query, const Tensor& key, const Tensor& value,
                        const std::optional<Tensor>& mask, const std::optional<Tensor>& seed,
                        bool is_causal, double dropout_p, double scale, bool wide_mask) {
  check(query.dim() == 4, "query must be [B, heads, Lq, E], got ", query);
  check(key.dim() == 4 && value.dim() == 4, "key and value must be [B, heads, Lk, ..], got ", key,
        " and ", value);
  const std::int64_t B = query.size(0), heads = query.size(1), Lq = query.size(2);
  const std::int64_t E = query.size(3), Lk = key.size(2), D = value.size(3);
  check(E > 0, "query must have a head size of at least 1, got 0");
  AttentionInputs in{with_rows("query", query, {B, heads, Lq, E}, query),
                     with_rows("key", key, {B, heads, Lk, E}, query),
                     with_rows("value", value, {B, heads, Lk, D}, query),
                     std::nullopt,
                     {}};
  in.arguments = {B, heads, Lq, Lk, E, D, heads_of(in.query), heads_of(in.key), heads_of(in.value)};
  Attention& a = in.arguments;
  a.causal = is_causal, a.scale = scale;
  a.bfloat16 = query.scalar_type() == ScalarType::BFloat16;
  if (mask) {
    const Shape full{B, heads, Lq, Lk}, given = shape_of(*mask);
    bool fits = given.size() == full.size();
    for (std::size_t i = 0; fits && i < full.size(); ++i)
      fits = given[i] == full[i] || given[i] == 1;
    check(fits, "mask must broadcast to [B, heads, Lq, Lk] = ", full, ", got ", *mask);
    const bool boolean = mask->scalar_type() == ScalarType::Bool;
    check(boolean || mask->scalar_type() == query.scalar_type(),
          "mask must be bool or have the query's dtype");
    check(mask->device() == query.device(), "mask must be on the query's device");
    check.held("mask", *mask);
    in.mask = column_stride(*mask) <= 1 ? *mask : torch::stable::contiguous(*mask);
    if (!boolean && a.bfloat16 && wide_mask)
      in.mask = torch::stable::to(*in.mask, ScalarType::Float);
    a.mask_kind = boolean ? Mask::boolean : Mask::additive;
    a.mask = heads_of(*in.mask), a.mask_column = column_stride(*in.mask);
  }
  check(dropout_p >= 0 && dropout_p < 1, "dropout_p must be in [0, 1), got ", dropout_p);
  if (seed) {
    check(seed->scalar_type() == ScalarType::Long && seed->numel() == 1,
          "seed must be an int64 tensor of one value");
    check(seed->device() == query.device(), "seed must be on the query's device");
    check.held("seed", *seed);
    a.dropout = dropout_p;
    a.dropped_below = std::uint32_t(std::fmin(std::nearbyint(dropout_p * 0x1p32), 0xFFFFFFFFp0));
    a.seed = seed->const_data_ptr<std::int64_t>();
  }
  return in;
}

}  // namespace

AttentionForwardCall::AttentionForwardCall(const Tensor& query, const Tensor& key,
                                           const Tensor& value, const std::optional<Tensor>& mask,
                                           const std::optional<Tensor>& seed, bool is_causal,
                                           double dropout_p, double scale, bool wide_mask)
    : in(checked(query, key, value, mask, seed, is_causal, dropout_p, scale, wide_mask)),
      output(empty_rows(query, in.arguments.value_size)),
      logsumexp(empty_statistics(in, {})),
      arguments{in.arguments, heads_of(output), logsumexp.mutable_data_ptr()} {}

AttentionBackwardCall::AttentionBackwardCall(const Tensor& grad_output, const Tensor& query,
                                             const Tensor& key, const Tensor& value,
                                             const std::optional<Tensor>& mask,
                                             const std::optional<Tensor>& seed,
                                             const Tensor& output, const Tensor& logsumexp,
                                             bool is_causal, double dropout_p, double scale,
                                             bool mask_grad, bool wide_mask)
    : in(checked(query, key, value, mask, seed, is_causal, dropout_p, scale, wide_mask)),
      statistics(empty_statistics(in, {2})) {
  const Attention& a = in.arguments;
  const Shape rows{a.batch, a.heads, a.queries, a.value_size};
  given = {with_rows("grad_output", grad_output, rows, query),
           with_rows("output", output, rows, query),
           check.tensor("logsumexp", logsumexp, {rows[0], rows[1], rows[2]}, statistics)};
  check(!mask_grad || a.mask_kind == Mask::additive, "mask_grad needs an additive mask");
  results = {empty_rows(query, a.size), empty_rows(key, a.size), empty_rows(value, a.value_size),
             mask_grad ? new_tensor(*in.mask, shape_of(*mask)) : new_tensor(query, {0})};
  auto& [grad_query, grad_key, grad_value, grad_mask] = results;
  arguments = {a,
               heads_of(given[0]),
               heads_of(given[1]),
               given[2].const_data_ptr(),
               heads_of(grad_query),
               heads_of(grad_key),
               heads_of(grad_value),
               {},
               0};
  if (!mask_grad) return;
  torch::stable::zero_(grad_mask);
  arguments.grad_mask = heads_of(grad_mask);
  arguments.grad_mask_column = column_stride(grad_mask);
}

}  // namespace fastrnn
