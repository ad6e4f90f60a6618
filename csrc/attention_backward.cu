// Attention's backward pass: its launches.
#include <type_traits>

#include "attention_backward.h"

namespace fastrnn::cuda {
namespace {

template <class T>
int statistics(const AttentionGradients& a, void* stream) {
  AttentionPlan p{};
  p.warps = attention_threads / 32, p.shared = 16;
  const Index rows = a.batch * a.heads * a.queries;
  return launch_blocks(attention_statistics<T>, p, (rows + p.warps - 1) / p.warps, a, stream);
}

template <class T, int Columns>
int rows(const AttentionGradients& a, std::int64_t shared_limit, void* stream) {
  const auto pass = [&](AttentionPass pass, const auto& kernel, Index own) {
    const AttentionPlan p =
        attention_plan(pass, sizeof(T), Columns, own, a.size, a.value_size, shared_limit);
    return launch_blocks(kernel, p, blocks_of(a, p, own), a, stream);
  };
  const int error = pass(AttentionPass::queries, attention_grad_queries<T, Columns>, a.queries);
  return error ? error : pass(AttentionPass::keys, attention_grad_keys<T, Columns>, a.keys);
}

template <class T>
int mask(const AttentionGradients& a, std::int64_t shared_limit, void* stream) {
  const AttentionPlan p = attention_plan(AttentionPass::mask, sizeof(T), 0, a.queries, a.size,
                                         a.value_size, shared_limit);
  if (a.queries == 0 || a.keys == 0) return 0;
  const Heads& grad = a.grad_mask;
  constexpr int step = attention_shape(AttentionPass::mask, sizeof(T), 0).step;
  Index blocks = (grad.batch ? a.batch : 1) * (grad.head ? a.heads : 1);
  if (grad.row && p.rows) blocks *= (a.queries + p.rows - 1) / p.rows;
  if (a.grad_mask_column) blocks *= (a.keys + step - 1) / step;
  return launch_blocks(attention_grad_mask<T>, p, blocks, a, stream);
}

template <class T>
int backward(const AttentionGradients& a, std::int64_t shared_limit, void* stream) {
  int error = statistics<T>(a, stream);
  const int columns = attention_columns(sizeof(T), a.size > a.value_size ? a.size : a.value_size);
  if (error == 0) {
    if (columns == 32) error = rows<T, 32>(a, shared_limit, stream);
    if constexpr (sizeof(T) < 8) {
      if (columns == 64) error = rows<T, 64>(a, shared_limit, stream);
      if (columns == 128) error = rows<T, 128>(a, shared_limit, stream);
    }
  }
  return error || !a.grad_mask.data ? error : mask<T>(a, shared_limit, stream);
}

}  // namespace

int attention_backward(Dtype dtype, const AttentionGradients& a, std::int64_t shared_limit,
                       void* stream) {
  switch (dtype) {
    case Dtype::float32:
      return backward<float>(a, shared_limit, stream);
    case Dtype::float64:
      return backward<double>(a, shared_limit, stream);
    case Dtype::float16:
      return backward<Half>(a, shared_limit, stream);
    case Dtype::bfloat16:
      return backward<BFloat16>(a, shared_limit, stream);
  }
  return 1;
}

}  // namespace fastrnn::cuda
