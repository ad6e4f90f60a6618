// The forward and the backward pass of a layer in one cooperative launch: all blocks keep W_hh
// together and exchange the rows of k through device memory. The sequences are worked on in tiles
// of 8, with the lanes' work and the products of the cluster schedule. In a step every warp first
// takes its part of the products of all tiles; the sums meet in the blocks that own the jobs, where
// any warp does the gates of a job and tile. Blocks that share k are a cluster.
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

// The same among the blocks that share k.
__device__ __forceinline__ void meet_cluster(const ClusterPlan& p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if (p.share > 1) {
    cluster_arrive();
    cluster_wait();
    return;
  }
#endif
  __syncthreads();
}

// How often b goes into a, which keeps the rest: a few times, sooner counted than divided.
__device__ __forceinline__ int count_out(int& a, int b) {
  int times = 0;
  for (; a >= b; a -= b) ++times;
  return times;
}

// The warps' turns at the gates: a job of the block's own and a tile.
struct Pairs {
  const ClusterPlan& p;
  int tiles, warp, warps;

  __device__ __forceinline__ Pairs(const ClusterPlan& p, int tiles)
      : p(p), tiles(tiles), warp(int(threadIdx.x) / 32), warps(p.jobs * p.splits) {}

  // act(first) for each of this warp's, `at` being there; first: its first.
  template <class Act>
  __device__ __forceinline__ void each(ClusterPlace& at, Index H, const Act& act) const {
    for (int pair = warp; pair < p.own * tiles; pair += warps) {
      turn(at, pair);
      if (at.unit_of(p, 0) < H) act(pair == warp);
    }
  }
  // Its first, if it has one.
  template <class Act>
  __device__ __forceinline__ void first(ClusterPlace& at, Index H, const Act& act) const {
    if (warp >= p.own * tiles) return;
    turn(at, warp);
    if (at.unit_of(p, 0) < H) act();
  }

 private:
  __device__ __forceinline__ void turn(ClusterPlace& at, int pair) const {
    at.first_octet = int(blockIdx.x) * p.octets();
    at.turn_to(p, count_out(pair, p.own));
    at.job = pair;
  }
};

// Where the sums of one of the blocks that share k lie in a job's owner: [Count, lanes].
template <int Count>
__device__ __forceinline__ float* sums_of(const ClusterPlan& p, const ClusterPlace& at, int tile,
                                          int job, int from) {
  float* const every = reinterpret_cast<float*>(at.shared + p.sums);
  return every + ((tile * p.own + job) * p.share + from) * Count * 32 + at.lane;
}

// The products of all tiles, each to its owner, as many at once as `ahead` takes; it has begun with
// the first of `rows`. product(sums) takes the next ones.
template <int Slots, class T, class Product>
__device__ __forceinline__ void products(const ClusterPlan& p, const ClusterPlace& at,
                                         Ahead<T>& ahead, const T* rows, int tiles,
                                         const Product& product) {
  constexpr int Count = Slots * elements, most = Ahead<T>::at_once;
  for (int tile = 0; tile < tiles; tile += ahead.tiles()) {
    if (tile > 0) {
      ahead.start(rows + tile * p.tile * p.stride, tiles - tile);
      if (p.splits > 1) __syncthreads();  // the last tiles' partial sums have been read
    }
    float sums[most][Slots][elements];
    product(sums);
    if (at.part > 0) continue;
    int job = at.job;
    const int owner = count_out(job, p.own);
#pragma unroll
    for (int t = 0; t < most; ++t) {
      if (t >= ahead.tiles()) break;
      float* to = sums_of<Count>(p, at, tile + t, job, at.rank);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
      if (p.share > 1) to = cluster_peer(to, unsigned(owner));
#endif
#pragma unroll
      for (int i = 0; i < Count; ++i) to[i * 32] = sums[t][i / elements][i % elements];
    }
  }
  meet_cluster(p);
}

// What has come together, in the blocks' order.
template <int Slots>
__device__ __forceinline__ void collect(const ClusterPlan& p, const ClusterPlace& at,
                                        float (&sums)[Slots][elements]) {
  constexpr int Count = Slots * elements;
#pragma unroll
  for (int i = 0; i < Count; ++i) sums[i / elements][i % elements] = 0.f;
  for (int from = 0; from < p.share; ++from) {
    const float* const part = sums_of<Count>(p, at, at.tile, at.job, from);
#pragma unroll
    for (int i = 0; i < Count; ++i) sums[i / elements][i % elements] += part[i * 32];
  }
}

template <class T, class Cell, Held held>
__global__ void __launch_bounds__(thread_limit(held), 1)
    grid_forward(const __grid_constant__ Ways<T, Forward> ways, ClusterPlan p, int tiles,
                 unsigned char* workspaces, Index bytes) {
  const auto& [f, extras, steps, weight, weight_on] = ways.of[blockIdx.y];
  // With an operand, h has one buffer and the operand the other.
  constexpr int F = Cell::operand_gates, L = Cell::gates - F;
  FASTRNN_SHARED(unsigned char, shared);
  ClusterPlace at(p, shared, int(blockIdx.x)), mine = at;
  const Index H = f.hidden_size;
  ClusterProduct<T, Cell::gates, held> product;
  const int unit = at.unit_of(p, 0) + at.group;
  product.fill(p, at, ForwardWeights<T>{weight, weight_on, H, unit, Cell::gates});
  ForwardRows<T, Cell> rows(f, extras, p, mine);
  GridRows<T> exchanged{workspaces + blockIdx.y * bytes, tiles};
  Ahead<T> ahead(p, at, 0, p.chunks);
  const Pairs pairs(p, tiles);
  T* const staged = reinterpret_cast<T*>(shared + p.stage) + pairs.warp * p.tile * octet;
  const auto send = [&](Index buffer) {
    __syncwarp();
    store_rows<octet>(p, mine, staged, exchanged.of(p, buffer, mine.tile) + mine.unit_of(p, 0));
    __syncwarp();
  };
  for (Index i = Index(blockIdx.x) * p.threads() + threadIdx.x; i < f.batch * H;
       i += Index(gridDim.x) * p.threads())
    exchanged.of(p, 0, 0)[i / H * p.stride + i % H] = static_cast<const T*>(f.state)[i];
  fill_biases<T, Cell>(f, p, at, int(blockIdx.x) * p.octets() * octet);
  pairs.each(mine, H, [&](bool) { rows.begin(); });
  meet_cluster(p);
  exchanged.meet();
  for (Index i = 0; i < steps.steps; ++i) {
    // Read again rather than kept: the products need the registers.
    const auto step = [&] { return step_at(steps, i, f.batch); };
    if constexpr (F > 0) {
      const T* const every = exchanged.of(p, 0, 0);
      ahead.start(every, tiles);
      pairs.first(mine, H, [&] { rows.template fetch<0, F>(step()); });
      products<F>(p, at, ahead, every, tiles,
                  [&](auto& sums) { product.template of_slots<0>(p, at, ahead, sums); });
      pairs.each(mine, H, [&](bool first) {
        if (!first) rows.template fetch<0, F>(step());
        float sums[F][elements];
        collect(p, mine, sums);
        rows.operand(sums, staged);
        send(1);
      });
      exchanged.meet();
    }
    const T* const every = exchanged.of(p, F > 0 ? 1 : i, 0);
    ahead.start(every, tiles);
    // Arrives while the products are taken.
    pairs.first(mine, H, [&] { rows.template fetch<F>(step()); });
    products<L>(p, at, ahead, every, tiles,
                [&](auto& sums) { product.template of_slots<F>(p, at, ahead, sums); });
    pairs.each(mine, H, [&](bool first) {
      if (!first) rows.template fetch<F>(step());
      float sums[L][elements];
      collect(p, mine, sums);
      rows.advance(step(), sums, staged);
      send(F > 0 ? 0 : i + 1);
      rows.save(step());
    });
    if (i + 1 < steps.steps) exchanged.meet();
  }
  pairs.each(mine, H, [&](bool) { rows.end(); });
}

template <class T, class Cell, Held held>
__global__ void __launch_bounds__(thread_limit(held), 1)
    grid_backward(const __grid_constant__ Ways<T, Backward> ways, ClusterPlan p, int tiles,
                  unsigned char* workspaces, Index bytes) {
  const auto& [b, extras, steps, weight, weight_on] = ways.of[blockIdx.y];
  constexpr int G = Cell::gates, F = Cell::operand_gates, O = 2;
  FASTRNN_SHARED(unsigned char, shared);
  ClusterPlace at(p, shared, int(blockIdx.x)), mine = at;
  const Index H = b.hidden_size;
  ClusterProduct<T, O, held> product;
  const int late = p.first_chunks * chunk_k;
  const int unit = at.unit_of(p, 0) + at.group;
  product.fill(p, at, BackwardWeights<T, Cell>{weight, weight_on, H, unit, late});
  BackwardRows<T, Cell> rows{b, extras, p, mine};
  GridRows<T> exchanged{workspaces + blockIdx.y * bytes, tiles};
  const Pairs pairs(p, tiles);
  T* const staged = reinterpret_cast<T*>(shared + p.stage) + pairs.warp * p.tile * O * G * octet;
  // With an operand, the two products read places of their own in one buffer.
  const auto of = [&](Index i, int tile) -> T* { return exchanged.of(p, F > 0 ? 0 : i, tile); };
  Ahead<T> ahead(p, at, F > 0 ? p.first_chunks : 0, p.chunks);
  pairs.each(mine, H, [&](bool) { rows.begin(); });
  meet_cluster(p);
  // A step first takes what the step after it (i + 1) has sent; step -1 does nothing else.
  for (Index i = steps.steps - 1; i >= -1; --i) {
    const bool works = i >= 0, receives = i + 1 < steps.steps;
    if (receives) ahead.start(of(i + 1, 0), tiles);
    if (works) pairs.first(mine, H, [&] { rows.fetch(step_at(steps, i, b.batch)); });
    if (receives)
      products<O>(p, at, ahead, of(i + 1, 0), tiles,
                  [&](auto& sums) { product.template last<(F > 0)>(p, at, ahead, sums); });
    pairs.each(mine, H, [&](bool first) {
      if (works && !first) rows.fetch(step_at(steps, i, b.batch));
      float sums[O][elements] = {};
      if (receives) {
        collect(p, mine, sums);
        const Step after = step_at(steps, i + 1, b.batch);
        if (after.prev_rows < after.rows) rows.end(after, sums);
      }
      if (!works) return;
      // The step is read again rather than kept: the product needs the registers.
      const Step step = step_at(steps, i, b.batch);
      rows.advance(step, sums, staged);
      __syncwarp();
      store_rows<(G - F) * O * octet>(p, mine, staged,
                                      of(i, mine.tile) + mine.unit_of(p, 0) * (G - F));
      rows.template save<F>(step, staged);
      __syncwarp();
    });
    if (works) exchanged.meet();
    if constexpr (F > 0) {
      if (!works) continue;
      const Step step = step_at(steps, i, b.batch);
      Ahead<T> first(p, at, 0, p.first_chunks);
      first.start(of(i, 0), tiles);
      pairs.first(mine, H, [&] { rows.fetch(step); });
      products<O>(p, at, first, of(i, 0), tiles,
                  [&](auto& sums) { product.first(p, at, first, sums); });
      T* const early = staged + p.tile * O * (G - F) * octet;
      pairs.each(mine, H, [&](bool first) {
        if (!first) rows.fetch(step);
        float sums[O][elements];
        collect(p, mine, sums);
        rows.operand(step, sums, staged);
        __syncwarp();
        store_rows<F * O * octet>(p, mine, early, of(i, mine.tile) + late + mine.unit_of(p, 0) * F);
        rows.template save<0, F>(step, staged);
        __syncwarp();
      });
      exchanged.meet();
    }
  }
}

}  // namespace fastrnn::cuda
