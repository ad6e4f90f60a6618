// Attention's backward pass. The weights are made again from the scores and their logsumexp; one
// kernel owns queries, one keys and values, one the mask, so that every sum has one order
// (Dao 2023, "FlashAttention-2", algorithm 2, cut in two).
#pragma once

#include "attention_walk.h"

namespace fastrnn::cuda {

// [B, heads, Lq]: rowsum(grad_output * output), the mean slope of a row. A warp to a row.
template <class T>
__global__ void attention_means(AttentionGradients a, AttentionPlan) {
  using S = Sum<T>;
  const Lane at;
  const Index rows = a.batch * a.heads * a.queries;
  const Index row = Index(blockIdx.x) * (blockDim.x / 32) + at.warp;
  if (row >= rows) return;
  const Index pair = row / a.queries, i = row % a.queries;
  const Source<T> grad(a.grad_output, pair, a.heads, a.queries, a.value_size);
  const Source<T> output(a.output, pair, a.heads, a.queries, a.value_size);
  S sum = 0;
  for (int c = at.lane; c < grad.width; c += 32)
    sum += widen(grad.data[i * grad.row + c]) * widen(output.data[i * output.row + c]);
  for (unsigned mask = 16; mask; mask /= 2) sum += shuffle_xor(sum, mask);
  if (at.lane == 0) static_cast<S*>(a.means)[row] = sum;
}

// Of the queries that a lane's scores belong to: two for each of `Count`, its rows or columns.
template <class T, int Count>
struct Statistics {
  Sum<T> log[Count][2], mean[Count][2];

  template <class Query>
  __device__ __forceinline__ void load(const AttentionGradients& a, Index pair,
                                       const Query& query) {
    using S = Sum<T>;
    const auto* const logs = static_cast<const S*>(a.logsumexp) + pair * a.queries;
    const auto* const means = static_cast<const S*>(a.means) + pair * a.queries;
#pragma unroll
    for (int n = 0; n < Count; ++n)
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const Index i = query(n, x);
        log[n][x] = i < a.queries ? logs[i] * exponent_unit<T> : infinity<S>;
        mean[n][x] = i < a.queries ? means[i] : S(0);
      }
  }
};

// What a warp makes of its rows and a step of the others.
template <class T, int M, int N, class Bits>
struct Slopes {
  using S = Sum<T>;
  static constexpr bool of_keys = Bits::of_keys;
  // The weights that values were summed with, and the gradients of the scores, dS.
  Tiles<S, M, N> weights, slopes;

  // own[2], streamed[2]: rows in shared memory; row, column: the first ones' numbers.
  template <int Count>
  __device__ __forceinline__ Slopes(const Lane& at, const Masks<T>& masks, const AttentionPlan& p,
                                    const Bits& bits, const Statistics<T, Count>& statistics,
                                    const T* const (&own)[2], const T* const (&streamed)[2],
                                    Index row, Index column)
      : weights{}, slopes{} {
    const Attention& a = masks.a;
    constexpr int depth = sizeof(T) == 2 ? 16 : 16 / int(sizeof(T));
    const int deep[2] = {rounded_up(a.size, depth), rounded_up(a.value_size, depth)};
    multiply_rows(at, own[0], p.strides[0], streamed[0], p.strides[0], deep[0], weights);
    multiply_rows(at, own[1], p.strides[1], streamed[1], p.strides[1], deep[1], slopes);
    mask_scores(at, masks, bits, row, column, weights);
    const std::uint32_t kept = a.seed ? kept_bits<Bits, M, N>(at, masks, row, column) : ~0u;
    const S share = a.seed ? S(1 / (1 - a.dropout)) : S(1);
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int i = of_keys ? n % Count : m % Count, x = of_keys ? e % 2 : e / 2;
          const S factor = kept >> (4 * (m * N + n) + e) & 1 ? share : S(0);
          S &weight = weights.d[m][n][e], &slope = slopes.d[m][n][e];
          weight = exponential<T>(weight - statistics.log[i][x]);
          slope = weight * (slope * factor - statistics.mean[i][x]);
          weight *= factor;
        }
  }
};

// The gradient of the queries, or those of the keys and values.
template <class T, int Columns, AttentionPass pass>
__global__ void __launch_bounds__(attention_threads, 1)
    attention_grad_rows(AttentionGradients a, AttentionPlan p) {
  using S = Sum<T>;
  constexpr bool of_keys = pass == AttentionPass::keys;
  constexpr AttentionShape shape = attention_shape(pass, sizeof(T), Columns);
  constexpr int M = shape.tiles, N = shape.step / 8, C = Columns / 8;
  constexpr int Count = of_keys ? N : M;
  using Bits = std::conditional_t<of_keys, KeyBits<shape.step>, QueryBits<M, shape.step>>;
  FASTRNN_SHARED(T, memory);
  const Lane at;
  const Index pairs = a.batch * a.heads, pair = blockIdx.x % pairs, rest = blockIdx.x / pairs;
  const Index count = of_keys ? a.keys : a.queries, blocks = (count + p.rows - 1) / p.rows;
  // Under the causal rule the last queries and the first keys take longest: they begin.
  const Index block = of_keys ? rest / p.parts : blocks - 1 - rest / p.parts;
  const Index block_row = block * p.rows, row = block_row + at.warp * shape.rows();
  const int from = int(rest % p.parts) * Columns;
  const Rows<T> queries{{a.query, pair, a.heads, a.queries, a.size},
                        {a.grad_output, pair, a.heads, a.queries, a.value_size}};
  const Rows<T> keys{{a.key, pair, a.heads, a.keys, a.size},
                     {a.value, pair, a.heads, a.keys, a.value_size}};
  const Shared<T> shared{memory, p, true, shape.step};
  const T* const own[2] = {shared.own(0) + at.warp * shape.rows() * p.strides[0],
                           shared.own(1) + at.warp * shape.rows() * p.strides[1]};
  const Masks<T> masks(a, pair);
  Statistics<T, Count> statistics;
  if constexpr (!of_keys)
    statistics.load(a, pair, [&](int m, int h) { return row + at.row(m, h); });
  // Of queries or keys, and of values.
  Tiles<S, M, C> sums{};
  Tiles<S, of_keys ? M : 1, of_keys ? C : 1> value_sums{};

  const auto work = [&](Index column, int buffer, const Bits& bits) {
    if constexpr (of_keys)
      statistics.load(a, pair, [&](int n, int x) { return column + at.column(n, x); });
    const T* const streamed[2] = {shared.streamed(buffer, 0), shared.streamed(buffer, 1)};
    const Slopes<T, M, N, Bits> found(at, masks, p, bits, statistics, own, streamed, row, column);
    multiply_columns(at, found.slopes, streamed[0] + from, p.strides[0], sums);
    if constexpr (of_keys)
      multiply_columns(at, found.weights, streamed[1] + from, p.strides[1], value_sums);
  };
  const auto look = [&](Bits& bits, Index column) { bits.look(at, masks, row, column); };
  const auto scale = [&](int, int) { return S(a.scale); };
  if constexpr (of_keys) {
    const Index begin = a.causal ? block_row / shape.step * shape.step : 0;
    walk<Bits>(at, shared, keys, block_row, queries, 0, begin, a.queries, look, work);
    const Source<T> to_key(a.grad_key, pair, a.heads, a.keys, a.size);
    const Source<T> to_value(a.grad_value, pair, a.heads, a.keys, a.value_size);
    put_rows(at, sums, row, from, to_key, scale);
    put_rows(at, value_sums, row, from, to_value, [](int, int) { return S(1); });
  } else {
    const Index past = block_row + p.rows, end = a.causal && past < a.keys ? past : a.keys;
    walk<Bits>(at, shared, queries, block_row, keys, 0, 0, end, look, work);
    const Source<T> to_query(a.grad_query, pair, a.heads, a.queries, a.size);
    put_rows(at, sums, row, from, to_query, scale);
  }
}

// The mask's gradient: slopes, summed over what the mask is broadcast along. A block owns some of
// the mask's rows and columns, or all of an axis that it is broadcast along.
template <class T>
__global__ void __launch_bounds__(attention_threads, 1)
    attention_grad_mask(AttentionGradients a, AttentionPlan p) {
  using S = Sum<T>;
  constexpr AttentionShape shape = attention_shape(AttentionPass::mask, sizeof(T), 0);
  constexpr int M = shape.tiles, N = shape.step / 8;
  using Bits = QueryBits<M, shape.step>;
  FASTRNN_SHARED(T, memory);
  const Lane at;
  const Heads& grad = a.grad_mask;
  const bool every_row = grad.row == 0, every_column = a.grad_mask_column == 0;
  const Index own_heads = grad.head ? a.heads : 1, masks_ = (grad.batch ? a.batch : 1) * own_heads;
  const Index row_blocks = every_row ? 1 : (a.queries + p.rows - 1) / p.rows;
  const Index mask = blockIdx.x % masks_, block = blockIdx.x / masks_;
  const Index first_row = block % row_blocks * p.rows,
              first_column = block / row_blocks * shape.step;
  const Shared<T> shared{memory, p, true, shape.step};
  const T* const own[2] = {shared.own(0) + at.warp * shape.rows() * p.strides[0],
                           shared.own(1) + at.warp * shape.rows() * p.strides[1]};
  const T* const streamed[2] = {shared.streamed(0, 0), shared.streamed(0, 1)};
  Tiles<S, M, N> total{};
  for (Index pair = 0; pair < a.batch * a.heads; ++pair) {
    const Index b = grad.batch ? pair / a.heads : 0, h = grad.head ? pair % a.heads : 0;
    if (b * own_heads + h != mask) continue;
    const Rows<T> queries{{a.query, pair, a.heads, a.queries, a.size},
                          {a.grad_output, pair, a.heads, a.queries, a.value_size}};
    const Rows<T> keys{{a.key, pair, a.heads, a.keys, a.size},
                       {a.value, pair, a.heads, a.keys, a.value_size}};
    const Masks<T> masks(a, pair);
    for (Index top = first_row; top < (every_row ? a.queries : first_row + 1); top += p.rows) {
      const Index row = top + at.warp * shape.rows();
      for (Index column = first_column; column < (every_column ? a.keys : first_column + 1);
           column += shape.step) {
        Bits bits;
        bits.look(at, masks, row, column);
        if (!block_any(bits.any)) continue;
        shared.fetch_own(queries, top);
        shared.fetch_step(keys, column, 0, 0);
        end_copies();
        wait_copies<0>();
        __syncthreads();
        if (!bits.any) continue;
        bits.spread(at);
        Statistics<T, M> statistics;
        statistics.load(a, pair, [&](int m, int x) { return row + at.row(m, x); });
        const Slopes<T, M, N, Bits> found(at, masks, p, bits, statistics, own, streamed, row,
                                          column);
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) total.d[0][n][e] += found.slopes.d[0][n][e];
      }
    }
  }
  // [rows][step]: each thread then adds up what belongs to one value of the mask.
  S* const table = reinterpret_cast<S*>(memory);
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      table[(at.warp * shape.rows() + at.row(0, e / 2)) * shape.step + at.column(n, e % 2)] =
          total.d[0][n][e];
  __syncthreads();
  const int rows = int(p.rows), down = every_row ? rows : 1, along = every_column ? shape.step : 1;
  T* const to =
      static_cast<T*>(grad.data) + mask / own_heads * grad.batch + mask % own_heads * grad.head;
  for (int i = int(threadIdx.x); i < rows / down * (shape.step / along); i += int(blockDim.x)) {
    const int r = i / (shape.step / along), c = i % (shape.step / along);
    if (first_row + r >= a.queries || first_column + c >= a.keys) continue;
    S sum = 0;
    for (int y = 0; y < down; ++y)
      for (int x = 0; x < along; ++x) sum += table[(r + y) * shape.step + c + x];
    narrow(sum, to + (first_row + r) * grad.row + (first_column + c) * a.grad_mask_column);
  }
}

}  // namespace fastrnn::cuda
