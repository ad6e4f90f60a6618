// The forward and the backward pass of a layer in one cooperative launch: all blocks keep W_hh
// together and exchange the rows of k through device memory. The sequences are worked on a tile of
// 8 after the other, with the lanes' work and the products of the cluster schedule.
#pragma once

#include "cluster_backward.h"
#include "cluster_forward.h"

namespace fastrnn::cuda {

// The grid's memory: a flag, then the rows [2, tiles * tile, stride] that blocks exchange.
constexpr Index flag_bytes = 256;

template <class T>
struct GridRows {
  unsigned char* workspace;
  int tiles;
  unsigned met = 0;  // how often the blocks have met, times their number

  // Of a tile, in steps of this parity.
  __device__ __forceinline__ T* of(const ClusterPlan& p, Index parity, int tile) const {
    const Index row = Index((parity & 1) * tiles + tile) * p.tile;
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
    grid_forward(Forward f, Regularisers extras, Steps steps, const T* weight, ClusterPlan p,
                 int tiles, unsigned char* workspace) {
  FASTRNN_SHARED(unsigned char, shared);
  ClusterPlace at(p, shared, int(blockIdx.x));
  const Index H = f.hidden_size;
  const bool speaks = at.part == 0 && at.unit_of(p, 0) < H;  // the job's first warp, if any
  ClusterProduct<T, Cell::gates, held> product;
  const bool whole = H % octet == 0 && reinterpret_cast<std::uintptr_t>(weight) % 16 == 0;
  product.fill(p, at, ForwardWeights<T>{weight, H, at.unit_of(p, 0) + at.group, whole});
  ForwardRows<T, Cell> rows(f, extras, p, at);
  GridRows<T> exchanged{workspace, tiles};
  T* const staged = reinterpret_cast<T*>(shared + p.stage) + at.job * p.tile * octet;
  for (Index i = Index(blockIdx.x) * p.threads() + threadIdx.x; i < f.batch * H;
       i += Index(gridDim.x) * p.threads())
    exchanged.of(p, 0, 0)[i / H * p.stride + i % H] = static_cast<const T*>(f.state)[i];
  for (int tile = 0; speaks && tile < tiles; ++tile) {
    at.turn_to(p, tile);
    rows.begin();
  }
  exchanged.meet();
  for (Index i = 0; i < steps.steps; ++i) {
    const Step step = step_at(steps, i, f.batch);
    for (int tile = 0; tile < tiles; ++tile) {
      at.turn_to(p, tile);
      if (speaks) rows.fetch(step);       // arrives while the product is taken
      if (p.splits > 1) __syncthreads();  // the last tile's partial sums have been read
      float sums[Cell::gates][elements];
      product(p, at, exchanged.of(p, i, tile), sums);
      if (!speaks) continue;
      rows.advance(step, sums, staged);
      __syncwarp();
      T* const to = exchanged.of(p, i + 1, tile) + at.unit_of(p, 0);
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
    grid_backward(Backward b, Regularisers extras, Steps steps, const T* weight, ClusterPlan p,
                  int tiles, unsigned char* workspace) {
  constexpr int G = Cell::gates, O = 2;
  FASTRNN_SHARED(unsigned char, shared);
  ClusterPlace at(p, shared, int(blockIdx.x));
  const bool speaks = at.part == 0 && at.unit_of(p, 0) < b.hidden_size;  // the job's first warp
  ClusterProduct<T, O, held> product;
  product.fill(p, at, BackwardWeights<T, G>{weight, b.hidden_size, at.unit_of(p, 0) + at.group});
  BackwardRows<T, Cell> rows{b, extras, p, at};
  GridRows<T> exchanged{workspace, tiles};
  T* const staged = reinterpret_cast<T*>(shared + p.stage) + at.job * p.tile * O * G * octet;
  for (int tile = 0; speaks && tile < tiles; ++tile) {
    at.turn_to(p, tile);
    rows.begin();
  }
  // A step first takes what the step after it (i + 1) has sent; step -1 does nothing else.
  for (Index i = steps.steps - 1; i >= -1; --i) {
    const bool works = i >= 0, receives = i + 1 < steps.steps;
    for (int tile = 0; tile < tiles; ++tile) {
      at.turn_to(p, tile);
      if (speaks && works) rows.fetch(step_at(steps, i, b.batch));
      float sums[O][elements] = {};
      if (receives) {
        if (p.splits > 1) __syncthreads();  // the last tile's partial sums have been read
        product(p, at, exchanged.of(p, i + 1, tile), sums);
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
      T* const to = exchanged.of(p, i, tile) + at.unit_of(p, 0) * G;
      spread(p, at, staged, O * G * octet, 1, [=](int) { return to; });
      rows.save(step, staged);
      __syncwarp();
    }
    if (works) exchanged.meet();
  }
}

}  // namespace fastrnn::cuda
