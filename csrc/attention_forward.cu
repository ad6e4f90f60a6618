// Attention's forward pass: a block owns queries and goes through the keys, each row's sums kept
// against its largest score so far (Dao 2023, "FlashAttention-2", algorithm 1).
#include "attention_walk.h"

namespace fastrnn::cuda {
namespace {

template <class T, int M, int C>
struct Softmax {
  Sum<T> most[M][2], total[M][2];  // of the lane's rows: the largest score, its own weights' sum
  Tiles<Sum<T>, M, C> sums;

  // Scores to weights.
  template <int N>
  __device__ __forceinline__ void add(Tiles<Sum<T>, M, N>& scores) {
    using S = Sum<T>;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        S high = most[m][h];
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) high = larger(high, scores.d[m][n][2 * h + e]);
        high = larger(high, shuffle_xor(high, 1));
        high = larger(high, shuffle_xor(high, 2));
        const S base = high == -infinity<S> ? S(0) : high;
        const S share = exponential<T>(most[m][h] - base);
        most[m][h] = high;
        S added = 0;
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            S& score = scores.d[m][n][2 * h + e];
            score = exponential<T>(score - base);
            added += score;
          }
        total[m][h] = total[m][h] * share + added;
#pragma unroll
        for (int c = 0; c < C; ++c)
#pragma unroll
          for (int e = 0; e < 2; ++e) sums.d[m][c][2 * h + e] *= share;
      }
  }

 private:
  static __device__ __forceinline__ Sum<T> larger(Sum<T> x, Sum<T> y) { return x < y ? y : x; }
};

template <class T, int Columns>
__global__ void __launch_bounds__(attention_threads, 1)
    attention_forward(AttentionForward a, AttentionPlan p) {
  using S = Sum<T>;
  constexpr AttentionShape shape = attention_shape(AttentionPass::forward, sizeof(T), Columns);
  constexpr int M = shape.tiles, N = shape.step / 8, C = Columns / 8;
  using Bits = QueryBits<M, shape.step>;
  FASTRNN_SHARED(T, memory);
  const Lane at;
  const Index pairs = a.batch * a.heads, pair = blockIdx.x % pairs, rest = blockIdx.x / pairs;
  const Index blocks = (a.queries + p.rows - 1) / p.rows;
  // Under the causal rule the last queries take longest: they begin.
  const Index block_row = (blocks - 1 - rest / p.parts) * p.rows;
  const Index row = block_row + at.warp * shape.rows();
  const int from = int(rest % p.parts) * Columns;
  const Source<T> query(a.query, pair, a.heads, a.queries, a.size);
  const Rows<T> own{query, query};
  const Rows<T> streamed{{a.key, pair, a.heads, a.keys, a.size},
                         {a.value, pair, a.heads, a.keys, a.value_size}};
  const Shared<T> shared{memory, p, false, shape.step};
  const Masks<T> masks(a, pair);
  Softmax<T, M, C> rows{};
#pragma unroll
  for (int m = 0; m < M; ++m) rows.most[m][0] = rows.most[m][1] = -infinity<S>;

  const auto work = [&](Index key, int buffer, const Bits& bits) {
    Tiles<S, M, N> scores{};
    multiply_rows(at, shared.own(0) + at.warp * shape.rows() * p.strides[0], p.strides[0],
                  shared.streamed(buffer, 0), p.strides[0], p.widths[0], scores);
    mask_scores(at, masks, bits, row, key, scores);
    rows.add(scores);
    if (a.seed) {
      const std::uint32_t kept = kept_bits<Bits, M, N>(at, masks, row, key);
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (!(kept >> (4 * (m * N + n) + e) & 1)) scores.d[m][n][e] = 0;
    }
    multiply_columns(at, scores, shared.streamed(buffer, 1), p.strides[1], rows.sums);
  };
  const Index past = block_row + p.rows;
  walk<Bits>(
      at, shared, own, block_row, streamed, from, Index(0),
      a.causal && past < a.keys ? past : a.keys,
      [&](Bits& bits, Index key) { bits.look(at, masks, row, key); }, work);

  const S keep = S(1 / (1 - a.dropout));
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      S& total = rows.total[m][h];
      total = row_sum(total);
      const Index i = row + at.row(m, h);
      if (from == 0 && at.place == 0 && i < a.queries) {
        const S found = rows.most[m][h] / exponent_unit<T> + logarithm(total);
        static_cast<S*>(a.logsumexp)[pair * a.queries + i] = total == 0 ? infinity<S> : found;
      }
      total = total == 0 ? S(0) : keep / total;
    }
  const Source<T> output(a.output, pair, a.heads, a.queries, a.value_size);
  put_rows(at, rows.sums, row, from, output, [&](int m, int h) { return rows.total[m][h]; });
}

template <class T, int Columns>
int forward_of(const AttentionForward& a, std::int64_t shared_limit, void* stream) {
  const AttentionPlan p = attention_plan(AttentionPass::forward, sizeof(T), Columns, a.queries,
                                         a.size, a.value_size, shared_limit);
  return launch_blocks(attention_forward<T, Columns>, p, blocks_of(a, p, a.queries), a, stream);
}

template <class T>
int forward(const AttentionForward& a, std::int64_t shared_limit, void* stream) {
  const int columns = attention_columns(sizeof(T), a.value_size);
  if constexpr (sizeof(T) < 8) {
    if (columns == 64) return forward_of<T, 64>(a, shared_limit, stream);
    if (columns == 128) return forward_of<T, 128>(a, shared_limit, stream);
  }
  return forward_of<T, 32>(a, shared_limit, stream);
}

}  // namespace

int attention_forward(Dtype dtype, const AttentionForward& a, std::int64_t shared_limit,
                      void* stream) {
  switch (dtype) {
    case Dtype::float32:
      return forward<float>(a, shared_limit, stream);
    case Dtype::float64:
      return forward<double>(a, shared_limit, stream);
    case Dtype::float16:
      return forward<Half>(a, shared_limit, stream);
    case Dtype::bfloat16:
      return forward<BFloat16>(a, shared_limit, stream);
  }
  return 1;
}

}  // namespace fastrnn::cuda
