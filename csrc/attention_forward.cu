// Attention's forward pass: a block owns queries and goes through the keys, each row's sums kept
// against its largest score so far (Dao 2023, "FlashAttention-2", algorithm 1).
#include "attention_walk.h"

namespace fastrnn::cuda {
namespace {

// Weights are exponentials of scores less the row's base. It follows the row's largest score, but
// only once that is far above it: moving it means another factor for all sums, and weights of up
// to 2^8 or e^8 are as exact as those of up to 1.
template <class T, int M, int C>
struct Softmax {
  using S = Sum<T>;
  static constexpr S far = 8;
  S base[M][2], total[M][2];  // of the lane's rows; its own weights' sum
  Tiles<S, M, C> sums;

  // Scores, still to be multiplied by `unit`, to weights.
  template <int N>
  __device__ __forceinline__ void add(Tiles<S, M, N>& scores, S unit) {
    S next[M][2];
    bool moves = false;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        S high = scores.d[m][0][2 * h];
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) high = larger(high, scores.d[m][n][2 * h + e]);
        high = larger(high, shuffle_xor(high, 1));
        high = larger(high, shuffle_xor(high, 2)) * unit;
        const bool move = high - base[m][h] > far;
        next[m][h] = move ? high : base[m][h];
        moves = moves || move;
      }
    if (ballot(moves)) rebase(next);
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const S from = base[m][h] == -infinity<S> ? S(0) : base[m][h];
        S added = 0;
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            S& score = scores.d[m][n][2 * h + e];
            score = exponential<T>(score * unit - from);
            added += score;
          }
        total[m][h] += added;
        make_now(total[m][h]);
      }
  }

 private:
  // NaN is left out here; its own weight is NaN.
  static __device__ __forceinline__ float larger(float x, float y) { return ::fmaxf(x, y); }
  static __device__ __forceinline__ double larger(double x, double y) { return ::fmax(x, y); }

  __device__ __forceinline__ void rebase(const S (&next)[M][2]) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const S share = next[m][h] == base[m][h] ? S(1) : exponential<T>(base[m][h] - next[m][h]);
        base[m][h] = next[m][h];
        total[m][h] *= share;
#pragma unroll
        for (int c = 0; c < C; ++c)
#pragma unroll
          for (int e = 0; e < 2; ++e) sums.d[m][c][2 * h + e] *= share;
      }
  }
};

template <class T, int Width>
__global__ void __launch_bounds__(attention_threads, 1)
    attention_forward(AttentionForward a, AttentionPlan p) {
  using S = Sum<T>;
  using Memory = Shared<T, AttentionPass::forward, Width>;
  constexpr AttentionShape shape = Memory::shape;
  constexpr int Columns = attention_columns(sizeof(T), Width);
  constexpr int M = shape.tiles, N = shape.step / 8, C = Columns / 8;
  using Bits = QueryBits<M, shape.step>;
  FASTRNN_SHARED(T, memory);
  const Lane at;
  const Block block(a, p, a.queries);
  // Under the causal rule the last queries take longest: they begin.
  const Index block_row = (block.count - 1 - block.number) * p.rows, past = block_row + p.rows;
  const Index row = block_row + at.warp * shape.rows();
  const int from = block.part * Columns;
  const Source<T> query(a.query, block.pair, a.queries, a.size);
  const Memory shared{memory, p};
  const Masks<T> masks(a, block.pair);
  Softmax<T, M, C> rows{};
#pragma unroll
  for (int m = 0; m < M; ++m) rows.base[m][0] = rows.base[m][1] = -infinity<S>;

  const auto work = [&](Index key, int buffer, const Bits& bits) {
    const Lane at = Lane::afresh();
    Kept<M> kept;  // found first, while there are no scores to keep
    if (a.seed) kept = kept_bits<typename Bits::Scores, M, N>(at, masks, row, key);
    Tiles<S, M, N> scores{};
    multiply_rows<Memory::first>(at, shared.own_first(at), shared.streamed_first(buffer),
                                 p.widths[0], scores);
    rows.add(scores, mask_scores(at, masks, bits.scores(at), row, key, scores));
    if (a.seed)
      scores.each([&](int m, int n, int e, S& weight) {
        if (!kept(m, n, e)) weight = 0;
      });
    multiply_columns<Memory::second>(at, scores, shared.streamed_second(buffer), rows.sums);
  };
  walk<Bits>(
      shared, {query, query}, block_row, keys_of<T>(a, block.pair), from, Index(0),
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
        const S found = rows.base[m][h] / exponent_unit<T> + logarithm(total);
        static_cast<S*>(a.logsumexp)[block.pair.number * a.queries + i] =
            total == 0 ? infinity<S> : found;
      }
      total = total == 0 ? S(0) : keep / total;
    }
  const Source<T> output(a.output, block.pair, a.queries, a.value_size);
  put_rows(at, rows.sums, row, from, output, [&](int m, int h) { return rows.total[m][h]; });
}

template <class T>
int forward(const AttentionForward& a, std::int64_t shared_limit, void* stream) {
  return with_width<T>(a.size > a.value_size ? a.size : a.value_size, [&](auto width) {
    const AttentionPlan p = attention_plan(AttentionPass::forward, sizeof(T), width, a.queries,
                                           a.size, a.value_size, shared_limit);
    return launch_blocks(attention_forward<T, width>, p, blocks_of(a, p, a.queries), a, stream);
  });
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
