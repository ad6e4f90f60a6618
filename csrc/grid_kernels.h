// The forward and the backward pass of a layer in one cooperative launch: all blocks keep W_hh
// together and exchange the rows of k through device memory. The sequences are worked on a tile of
// 8 after the other, with the lanes' work and the products of the cluster schedule.
#pragma once

#include "cluster_backward.h"
#include "cluster_forward.h"

namespace fastrnn::cuda {

// The grid's memory: a flag, then the rows [buffers, tiles * tile, stride] that blocks exchange.
constexpr Index flag_bytes = 256;

template <class T>
struct GridRows {
  unsigned char* workspace;
  int tiles;
  unsigned met = 0;  // how often the blocks have met, times their number

  // Of a tile, in buffer i % 2, of two.
  __device__ __forceinline__ T* of(const ClusterPlan& p, Index i, int tile) const {
    const Index row = Index((i & 1) * tiles + tile) * p.tile;
    return reinterpret_cast<T*>(workspace + flag_bytes) + row * p.stride;
  }

  // What every thread did before is seen by every thread after.
  __device__ __forceinline__ void meet() {
    met += gridDim.x;
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned* const flag = reinterpret_cast<unsigned*>(workspace);
      add_release(flag, 1);
      wait_at_least(flag, met);
    }
    __syncthreads();
  }
};

template <class T, class Cell, Held held>
__global__ void __launch_bounds__(thread_limit(held), 1)
    grid_forward(const __grid_constant__ Ways<T, Forward> ways, ClusterPlan p, int tiles,
                 unsigned char* workspaces, Index bytes) {
  const auto& [f, extras, steps, weight] = ways.of[blockIdx.y];
  FASTRNN_SHARED(unsigned char, shared);
  ClusterPlace at(p, shared, int(blockIdx.x));
  const Index H = f.hidden_size;
  const bool speaks = at.part == 0 && at.unit_of(p, 0) < H;  // the job's first warp, if any
  ClusterProduct<T, Cell::gates, held> product;
  const bool whole = H % octet == 0 && reinterpret_cast<std::uintptr_t>(weight) % 16 == 0;
  product.fill(p, at, ForwardWeights<T>{weight, H, at.unit_of(p, 0) + at.group, whole});
  ForwardRows<T, Cell> rows(f, extras, p, at);
  GridRows<T> exchanged{workspaces + blockIdx.y * bytes, tiles};
  T* const staged = reinterpret_cast<T*>(shared + p.stage) + at.job * p.tile * octet;
  for (Index i = Index(blockIdx.x) * p.threads() + threadIdx.x; i < f.batch * H;
       i += Index(gridDim.x) * p.threads())
    exchanged.of(p, 0, 0)[i / H * p.stride + i % H] = static_cast<const T*>(f.state)[i];
  for (int tile = 0; speaks && tile < tiles; ++tile) {
    at.turn_to(p, tile);
    rows.begin();
  }
  exchanged.meet();
  // With an operand, h has one buffer and the operand the other.
  constexpr int F = Cell::operand_gates, L = Cell::gates - F;
  for (Index i = 0; i < steps.steps; ++i) {
    const Step step = step_at(steps, i, f.batch);
    if constexpr (F > 0) {
      for (int tile = 0; tile < tiles; ++tile) {
        at.turn_to(p, tile);
        if (speaks) rows.template fetch<0, F>(step);
        if (p.splits > 1) __syncthreads();  // the last tile's partial sums have been read
        float sums[F][elements];
        product.template of_slots<0, F>(p, at, exchanged.of(p, 0, tile), sums);
        if (!speaks) continue;
        rows.operand(sums, staged);
        __syncwarp();
        T* const to = exchanged.of(p, 1, tile) + at.unit_of(p, 0);
        spread(p, at, staged, octet, 1, [=](int) { return to; });
        __syncwarp();
      }
      exchanged.meet();
    }
    for (int tile = 0; tile < tiles; ++tile) {
      at.turn_to(p, tile);
      if (speaks) rows.template fetch<F>(step);  // arrives while the product is taken
      if (p.splits > 1) __syncthreads();         // the last tile's partial sums have been read
      float sums[L][elements];
      product.template of_slots<F, L>(p, at, exchanged.of(p, F > 0 ? 1 : i, tile), sums);
      if (!speaks) continue;
      rows.advance(step, sums, staged);
      __syncwarp();
      T* const to = exchanged.of(p, F > 0 ? 0 : i + 1, tile) + at.unit_of(p, 0);
      spread(p, at, staged, octet, 1, [=](int) { return to; });
      __syncwarp();
      rows.save(step);
    }
    if (i + 1 < steps.steps) exchanged.meet();
  }
  for (int tile = 0; speaks && tile < tiles; ++tile) {
    at.turn_to(p, tile);
    rows.end();
  }
}

template <class T, class Cell, Held held>
__global__ void __launch_bounds__(thread_limit(held), 1)
    grid_backward(const __grid_constant__ Ways<T, Backward> ways, ClusterPlan p, int tiles,
                  unsigned char* workspaces, Index bytes) {
  const auto& [b, extras, steps, weight] = ways.of[blockIdx.y];
  constexpr int G = Cell::gates, F = Cell::operand_gates, O = 2;
  FASTRNN_SHARED(unsigned char, shared);
  ClusterPlace at(p, shared, int(blockIdx.x));
  const bool speaks = at.part == 0 && at.unit_of(p, 0) < b.hidden_size;  // the job's first warp
  ClusterProduct<T, O, held> product;
  const int late = p.first_chunks * chunk_k;
  product.fill(p, at,
               BackwardWeights<T, Cell>{weight, b.hidden_size, at.unit_of(p, 0) + at.group, late});
  BackwardRows<T, Cell> rows{b, extras, p, at};
  GridRows<T> exchanged{workspaces + blockIdx.y * bytes, tiles};
  T* const staged = reinterpret_cast<T*>(shared + p.stage) + at.job * p.tile * O * G * octet;
  for (int tile = 0; speaks && tile < tiles; ++tile) {
    at.turn_to(p, tile);
    rows.begin();
  }
  // With an operand, the two products read places of their own in one buffer.
  const auto of = [&](Index i, int tile) { return exchanged.of(p, F > 0 ? 0 : i, tile); };
  // A step first takes what the step after it (i + 1) has sent; step -1 does nothing else.
  for (Index i = steps.steps - 1; i >= -1; --i) {
    const bool works = i >= 0, receives = i + 1 < steps.steps;
    for (int tile = 0; tile < tiles; ++tile) {
      at.turn_to(p, tile);
      if (speaks && works) rows.fetch(step_at(steps, i, b.batch));
      float sums[O][elements] = {};
      if (receives) {
        if (p.splits > 1) __syncthreads();  // the last tile's partial sums have been read
        product.template last<(F > 0)>(p, at, of(i + 1, tile), sums);
        if (speaks) {
          const Step after = step_at(steps, i + 1, b.batch);
          if (after.prev_rows < after.rows) rows.end(after, sums);
        }
      }
      if (!speaks || !works) continue;
      // The step is read again rather than kept: the product needs the registers.
      const Step step = step_at(steps, i, b.batch);
      rows.advance(step, sums, staged);
      __syncwarp();
      T* const to = of(i, tile) + at.unit_of(p, 0) * (G - F);
      spread(p, at, staged, O * (G - F) * octet, 1, [=](int) { return to; });
      rows.template save<F>(step, staged);
      __syncwarp();
    }
    if (works) exchanged.meet();
    if constexpr (F > 0) {
      if (!works) continue;
      T* const early = staged + p.tile * O * (G - F) * octet;
      for (int tile = 0; tile < tiles; ++tile) {
        at.turn_to(p, tile);
        const Step step = step_at(steps, i, b.batch);
        if (speaks) rows.fetch(step);
        __syncthreads();  // what the last tile has staged and summed has been read
        float sums[O][elements];
        product.first(p, at, of(i, tile), sums);
        if (!speaks) continue;
        rows.operand(step, sums, staged);
        __syncwarp();
        T* const to = of(i, tile) + late + at.unit_of(p, 0) * F;
        spread(p, at, early, O * F * octet, 1, [=](int) { return to; });
        rows.template save<0, F>(step, staged);
      }
      exchanged.meet();
    }
  }
}

}  // namespace fastrnn::cuda
