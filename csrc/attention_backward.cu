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

template <class T, int Width>
int rows(const AttentionGradients& a, std::int64_t shared_limit, void* stream) {
  const auto pass = [&](AttentionPass pass, const auto& kernel, Index own) {
    const AttentionPlan p =
        attention_plan(pass, sizeof(T), Width, own, a.size, a.value_size, shared_limit);
    return launch_blocks(kernel, p, blocks_of(a, p, own), a, stream);
  };
  const int error = pass(AttentionPass::queries, attention_grad_queries<T, Width>, a.queries);
  return error ? error : pass(AttentionPass::keys, attention_grad_keys<T, Width>, a.keys);
}

template <class T, int Width>
int mask(const AttentionGradients& a, std::int64_t shared_limit, void* stream) {
  const AttentionPlan p = attention_plan(AttentionPass::mask, sizeof(T), Width, a.queries, a.size,
                                         a.value_size, shared_limit);
  if (a.queries == 0 || a.keys == 0) return 0;
  const Heads& grad = a.grad_mask;
  constexpr int step = attention_shape(AttentionPass::mask, sizeof(T), Width).step;
  Index blocks = (grad.batch ? a.batch : 1) * (grad.head ? a.heads : 1);
  if (grad.row && p.rows) blocks *= (a.queries + p.rows - 1) / p.rows;
  if (a.grad_mask_column) blocks *= (a.keys + step - 1) / step;
  return launch_blocks(attention_grad_mask<T, Width>, p, blocks, a, stream);
}

template <class T>
int backward(const AttentionGradients& a, std::int64_t shared_limit, void* stream) {
  if (const int error = statistics<T>(a, stream)) return error;
  return with_width<T>(a.size > a.value_size ? a.size : a.value_size, [&](auto width) {
    const int error = rows<T, width>(a, shared_limit, stream);
    return error || !a.grad_mask.data ? error : mask<T, width>(a, shared_limit, stream);
  });
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
