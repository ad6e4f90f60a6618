// Attention's backward pass. The weights are made again from the scores and their logsumexp; one
// kernel owns queries, one keys and values, one the mask, so that every sum has one order
// (Dao 2023, "FlashAttention-2", algorithm 2, cut in two).
#pragma once

#include "attention_walk.h"

namespace fastrnn::cuda {

// A warp to a query.
template <class T>
__global__ void attention_statistics(AttentionGradients a, AttentionPlan) {
  using S = Sum<T>;
  const Lane at;
  const Index rows = a.batch * a.heads * a.queries;
  const Index row = Index(blockIdx.x) * (blockDim.x / 32) + at.warp;
  if (row >= rows) return;
  const Pair pair(unsigned(row / a.queries), a.heads);
  const Index i = row % a.queries;
  const Source<T> grad(a.grad_output, pair, a.queries, a.value_size);
  const Source<T> output(a.output, pair, a.queries, a.value_size);
  S sum = 0;
  for (int c = at.lane; c < grad.width; c += 32)
    sum += widen(grad.data[i * grad.row + c]) * widen(output.data[i * output.row + c]);
  for (unsigned mask = 16; mask; mask /= 2) sum += shuffle_xor(sum, mask);
  if (at.lane == 0)
    static_cast<Statistic<S>*>(a.statistics)[row] = {
        static_cast<const S*>(a.logsumexp)[row] * exponent_unit<T>, sum};
}

// Of the queries that a lane's scores belong to: two for each of `Count`, its rows or columns.
template <class T, int Count>
struct Statistics {
  Statistic<Sum<T>> of[Count][2];

  // Of a pair's queries row(n, x).
  template <class Row>
  __device__ __forceinline__ void load(const AttentionGradients& a, const Pair& pair,
                                       const Row& row) {
    const auto* const all =
        static_cast<const Statistic<Sum<T>>*>(a.statistics) + pair.number * a.queries;
#pragma unroll
    for (int n = 0; n < Count; ++n)
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const Index i = row(n, x);
        of[n][x] = i < a.queries ? all[i] : Statistic<Sum<T>>{infinity<Sum<T>>, 0};
      }
  }
  // Of the columns of tiles, from shared memory.
  __device__ __forceinline__ void load(const Lane& at, const Statistic<Sum<T>>* columns) {
#pragma unroll
    for (int n = 0; n < Count; ++n)
#pragma unroll
      for (int x = 0; x < 2; ++x) of[n][x] = columns[at.column(n, x)];
  }
};

// What a warp makes of its rows and some columns.
template <class Memory, class T, int M, int N, class Scores>
struct Slopes {
  using S = Sum<T>;
  static constexpr bool of_keys = Scores::of_keys;
  // The weights that values were summed with, and the gradients of the scores, dS.
  Tiles<S, M, N> weights, slopes;

  // The columns' rows in shared memory; row, column: the first ones' numbers.
  template <int Count>
  __device__ __forceinline__ Slopes(const Lane& at, const Masks<T>& masks, const Memory& shared,
                                    const Scores& count, const Statistics<T, Count>& statistics,
                                    const T* first, const T* second, Index row, Index column)
      : weights{}, slopes{} {
    const Attention& a = masks.a;
    constexpr int depth = sizeof(T) == 2 ? 16 : 16 / int(sizeof(T));
    Kept<M> kept;
    if (a.seed) kept = kept_bits<Scores, M, N>(at, masks, row, column);
    multiply_rows<Memory::first>(at, shared.own_first(at), first, rounded_up(a.size, depth),
                                 weights);
    multiply_rows<Memory::second>(at, shared.own_second(at), second,
                                  rounded_up(a.value_size, depth), slopes);
    const S unit = mask_scores(at, masks, count, row, column, weights);
    const S share = S(1 / (1 - a.dropout));
    if (a.seed)
      slopes.each([&](int m, int n, int e, S& slope) { slope *= kept(m, n, e) ? share : S(0); });
    weights.each([&](int m, int n, int e, S& weight) {
      const Statistic<S>& query =
          of_keys ? statistics.of[n % Count][e % 2] : statistics.of[m % Count][e / 2];
      weight = exponential<T>(weight * unit - query.log);
      // A large mask's logsumexp is rounded by more than the weights of its row can be.
      if (weight > 1) weight = 1;  // NaN stays
      slopes.d[m][n][e] = weight * (slopes.d[m][n][e] - query.mean);
    });
    if (a.seed)
      weights.each([&](int m, int n, int e, S& weight) { weight *= kept(m, n, e) ? share : S(0); });
  }
};

// The gradient of the queries.
template <class T, int Width>
__global__ void __launch_bounds__(attention_threads, 1)
    attention_grad_queries(AttentionGradients a, AttentionPlan p) {
  using S = Sum<T>;
  using Memory = Shared<T, AttentionPass::queries, Width>;
  constexpr AttentionShape shape = Memory::shape;
  constexpr int Columns = attention_columns(sizeof(T), Width);
  constexpr int M = shape.tiles, N = shape.step / 8;
  using Bits = QueryBits<M, shape.step>;
  const Lane at;
  const Block block(a, p, a.queries);
  // Under the causal rule the last queries take longest: they begin.
  const Index block_row = (block.count - 1 - block.number) * p.rows;
  const Index row = block_row + at.warp * shape.rows(), past = block_row + p.rows;
  FASTRNN_SHARED(T, memory);
  const Memory shared{memory, p};
  const Masks<T> masks(a, block.pair);
  Statistics<T, M> statistics;
  statistics.load(a, block.pair, [&](int m, int h) { return row + at.row(m, h); });
  Tiles<S, M, Columns / 8> sums{};
  const auto work = [&](Index column, int buffer, const Bits& bits) {
    const Lane at = Lane::afresh();
    const T* const keys = shared.streamed_first(buffer);
    const Slopes<Memory, T, M, N, typename Bits::Scores> found(
        at, masks, shared, bits.scores(at), statistics, keys, shared.streamed_second(buffer), row,
        column);
    multiply_columns<Memory::first>(at, found.slopes, keys + block.part * Columns, sums);
  };
  walk<Bits>(
      shared, queries_of<T>(a, block.pair), block_row, keys_of<T>(a, block.pair), 0, Index(0),
      a.causal && past < a.keys ? past : a.keys,
      [&](Bits& bits, Index column) { bits.look(at, masks, row, column); }, work);
  const Source<T> to(a.grad_query, block.pair, a.queries, a.size);
  put_rows(at, sums, row, block.part * Columns, to, [&](int, int) { return S(a.scale); });
}

// The gradients of the keys and values.
template <class T, int Width>
__global__ void __launch_bounds__(attention_threads, 1)
    attention_grad_keys(AttentionGradients a, AttentionPlan p) {
  using S = Sum<T>;
  using Memory = Shared<T, AttentionPass::keys, Width>;
  constexpr AttentionShape shape = Memory::shape;
  constexpr int Columns = attention_columns(sizeof(T), Width);
  constexpr int M = shape.tiles, N = shape.part() / 8;
  using Bits = KeyBits<M, shape.step>;
  const Lane at;
  const Block block(a, p, a.keys);
  const Index block_row = block.number * p.rows, row = block_row + at.warp * shape.rows();
  FASTRNN_SHARED(T, memory);
  const Memory shared{memory, p};
  const Masks<T> masks(a, block.pair);
  Tiles<S, M, Columns / 8> to_keys{}, to_values{};
  const auto work = [&](Index column, int buffer, const Bits& bits) {
    const Lane at = Lane::afresh();
#pragma unroll 1
    for (int from = 0; from < shape.step; from += shape.part()) {
      const T* const queries = shared.streamed_first(buffer) + from * Memory::first;
      const T* const grads = shared.streamed_second(buffer) + from * Memory::second;
      Statistics<T, N> statistics;
      statistics.load(at, shared.statistics(buffer) + from);
      const Slopes<Memory, T, M, N, KeyScores<M, N>> found(
          at, masks, shared, bits.template scores<N>(at, from), statistics, queries, grads, row,
          column + from);
      const int first = block.part * Columns;
      multiply_columns<Memory::first>(at, found.slopes, queries + first, to_keys);
      multiply_columns<Memory::second>(at, found.weights, grads + first, to_values);
    }
  };
  walk<Bits>(
      shared, keys_of<T>(a, block.pair), block_row, queries_of<T>(a, block.pair), 0,
      a.causal ? block_row / shape.step * shape.step : 0, a.queries,
      [&](Bits& bits, Index column) { bits.look(at, masks, row, column); }, work);
  const Source<T> keys(a.grad_key, block.pair, a.keys, a.size);
  const Source<T> values(a.grad_value, block.pair, a.keys, a.value_size);
  put_rows(at, to_keys, row, block.part * Columns, keys, [&](int, int) { return S(a.scale); });
  put_rows(at, to_values, row, block.part * Columns, values, [](int, int) { return S(1); });
}

// The mask's gradient: slopes, summed over what the mask is broadcast along. A block owns some of
// the mask's rows and columns, or all of an axis that it is broadcast along.
template <class T, int Width>
__global__ void __launch_bounds__(attention_threads, 1)
    attention_grad_mask(AttentionGradients a, AttentionPlan p) {
  using S = Sum<T>;
  using Memory = Shared<T, AttentionPass::mask, Width>;
  constexpr AttentionShape shape = Memory::shape;
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
  const Memory shared{memory, p};
  Tiles<S, M, N> total{};
  for (unsigned number = 0; number < unsigned(a.batch * a.heads); ++number) {
    const Pair pair(number, a.heads);
    const Index b = grad.batch ? pair.batch : 0, h = grad.head ? pair.head : 0;
    if (b * own_heads + h != mask) continue;
    const Masks<T> masks(a, pair);
    for (Index top = first_row; top < (every_row ? a.queries : first_row + 1); top += p.rows) {
      const Index row = top + at.warp * shape.rows();
      for (Index column = first_column; column < (every_column ? a.keys : first_column + 1);
           column += shape.step) {
        Bits bits;
        bits.look(at, masks, row, column);
        if (!block_any(bits.any)) continue;
        shared.fetch_own(queries_of<T>(a, pair), top);
        shared.fetch_step(keys_of<T>(a, pair), column, 0, 0);
        end_copies();
        wait_copies<0>();
        __syncthreads();
        if (!bits.any) continue;
        Statistics<T, M> statistics;
        statistics.load(a, pair, [&](int m, int x) { return row + at.row(m, x); });
        const Slopes<Memory, T, M, N, typename Bits::Scores> found(
            at, masks, shared, bits.scores(at), statistics, shared.streamed_first(0),
            shared.streamed_second(0), row, column);
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
