// The loop that attention's passes share: a block keeps its own rows in shared memory and goes
// through the others' in steps, copying one step ahead.
#pragma once

#include "attention_scores.h"

namespace fastrnn::cuda {

// What backward knows of a query: its logsumexp in units of the exponential, and the mean slope of
// its row, rowsum(grad_output * output).
template <class S>
struct alignas(2 * sizeof(S)) Statistic {
  S log, mean;
};

// The two tensors whose rows are of one length, Lq or Lk; of queries perhaps what is known of them.
template <class T>
struct Rows {
  Source<T> first, second;
  const Statistic<Sum<T>>* statistics = nullptr;
};

template <class T>
__device__ __forceinline__ Rows<T> keys_of(const Attention& a, const Pair& pair) {
  return {{a.key, pair, a.keys, a.size}, {a.value, pair, a.keys, a.value_size}};
}
template <class T>
__device__ __forceinline__ Rows<T> queries_of(const AttentionGradients& a, const Pair& pair) {
  return {{a.query, pair, a.queries, a.size},
          {a.grad_output, pair, a.queries, a.value_size},
          static_cast<const Statistic<Sum<T>>*>(a.statistics) + pair.number * a.queries};
}

// Which of a pass's results a block makes.
struct Block {
  Pair pair;
  Index count, number;  // blocks that share the pair's rows
  int part;             // of the result's columns

  // Neighbouring blocks are of different pairs.
  __device__ __forceinline__ Block(const Attention& a, const AttentionPlan& p, Index rows)
      : pair(blockIdx.x % pairs(a), a.heads),
        count((rows + p.rows - 1) / p.rows),
        number(blockIdx.x / pairs(a) / unsigned(p.parts)),
        part(int(blockIdx.x / pairs(a) % unsigned(p.parts))) {}

 private:
  static __device__ __forceinline__ unsigned pairs(const Attention& a) {
    return unsigned(a.batch * a.heads);
  }
};

// The block's shared memory.
template <class T, AttentionPass pass, int Width>
struct Shared {
  static constexpr bool both =
      pass != AttentionPass::forward;  // of the own rows' tensors are there
  static constexpr AttentionShape shape = attention_shape(pass, sizeof(T), Width);
  static constexpr AttentionStrides strides = attention_strides(pass, sizeof(T), Width);
  static constexpr int step = shape.step, first = strides.first, second = strides.second;
  T* memory;
  const AttentionPlan& p;

  // The warp's rows of the first tensor, and of the second.
  __device__ __forceinline__ const T* own_first(const Lane& at) const {
    return memory + at.warp * shape.rows() * first;
  }
  __device__ __forceinline__ const T* own_second(const Lane& at) const {
    return memory + p.rows * first + at.warp * shape.rows() * second;
  }
  __device__ __forceinline__ T* streamed_first(int buffer) const {
    return memory + p.rows * (first + (both ? second : 0)) + step * buffer * (first + second);
  }
  __device__ __forceinline__ T* streamed_second(int buffer) const {
    return streamed_first(buffer) + step * first;
  }
  __device__ __forceinline__ Statistic<Sum<T>>* statistics(int buffer) const {
    return reinterpret_cast<Statistic<Sum<T>>*>(streamed_first(p.stages)) + buffer * step;
  }

  __device__ __forceinline__ void fetch_own(const Rows<T>& own, Index row) const {
    fetch<first>(own.first, row, int(p.rows), 0, memory, p.widths[0]);
    if (both) fetch<second>(own.second, row, int(p.rows), 0, memory + p.rows * first, p.widths[1]);
  }
  // The second's columns from `from` on.
  __device__ __forceinline__ void fetch_step(const Rows<T>& rows, Index row, int from,
                                             int buffer) const {
    fetch<first>(rows.first, row, step, 0, streamed_first(buffer), p.widths[0]);
    fetch<second>(rows.second, row, step, from, streamed_second(buffer), p.widths[1]);
    if (const int i = int(threadIdx.x); rows.statistics && i < step)
      copy_async<sizeof(Statistic<Sum<T>>)>(statistics(buffer) + i, rows.statistics + row + i,
                                            row + i >= rows.first.count);
  }
};

// Calls work(row, buffer, bits) for the steps from `begin` to `end` in which some score of this
// warp counts. What no warp of the block needs is not even copied. look(bits, row) fills the bits.
template <class Bits, class T, AttentionPass pass, int Width, class Look, class Work>
__device__ __forceinline__ void walk(const Shared<T, pass, Width>& shared, const Rows<T>& own,
                                     Index own_row, const Rows<T>& rows, int from, Index begin,
                                     Index end, const Look& look, const Work& work) {
  Bits ahead;
  // The vote is a barrier, too: after it nobody reads the step before any more.
  const auto needed_from = [&](Index row) {
    for (; row < end; row += shared.step) {
      look(ahead, row);
      if (block_any(ahead.any)) break;
    }
    return row;
  };
  Index next = needed_from(begin);
  if (next >= end) return;
  const bool early = shared.p.stages == 2;
  shared.fetch_own(own, own_row);
  if (early) shared.fetch_step(rows, next, from, 0);
  end_copies();
  for (int buffer = 0; next < end; buffer ^= int(early)) {
    const Index row = next;
    const Bits bits = ahead;
    next = needed_from(row + shared.step);
    if (early) {
      if (next < end) shared.fetch_step(rows, next, from, buffer ^ 1);
      end_copies();
      wait_copies<1>();
    } else {
      __syncthreads();
      shared.fetch_step(rows, row, from, buffer);
      end_copies();
      wait_copies<0>();
    }
    __syncthreads();
    if (bits.any) work(row, buffer, bits);
  }
}

// Calls run(a width's std::integral_constant) for heads of at most `widest` units.
template <class T, class Run>
int with_width(Index widest, const Run& run) {
  if constexpr (sizeof(T) < 8) {
    if (widest <= 32) return run(std::integral_constant<int, 32>{});
    if (widest > 64 && widest <= 128) return run(std::integral_constant<int, 128>{});
  }
  return widest <= 64 ? run(std::integral_constant<int, 64>{})
                      : run(std::integral_constant<int, widest_head>{});
}

// As many blocks as there are results, each a kernel's; 1: an invalid value, as CUDA says it.
template <class A>
int launch_blocks(void (*kernel)(A, AttentionPlan), const AttentionPlan& p, Index blocks,
                  const A& arguments, void* stream) {
  if (blocks == 0) return 0;
  if (p.shared == 0 || blocks > INT32_MAX) return 1;
  return launch(kernel, {unsigned(blocks), 1, p.warps * 32, p.shared}, stream, arguments, p);
}

// Of a pass over `own` rows of every pair of batch and head.
inline Index blocks_of(const Attention& a, const AttentionPlan& p, Index own) {
  return p.rows ? a.batch * a.heads * p.parts * ((own + p.rows - 1) / p.rows) : Index(own > 0);
}

}  // namespace fastrnn::cuda
