// What a launch of several directions or layers is given, and how layers wait for each other.
#pragma once

#include "cluster_place.h"

namespace fastrnn::cuda {

// What a launch is given, by direction or layer; blockIdx.y is a block's.
template <class T, class Pass>
struct Ways {
  struct One {
    Pass pass;
    Regularisers extras;
    Steps steps;
    const T *weight, *weight_on;

    explicit One(const Way<Pass>& way)
        : pass(way.pass),
          extras(way.pass),
          steps(way.steps),
          weight(static_cast<const T*>(way.weight_hh)),
          weight_on(static_cast<const T*>(way.weight_on)) {}
  } of[max_ways];

  Ways(const Way<Pass>* ways, int count)
      : of{One(ways[0]), One(ways[count > 2 ? 1 : count - 1]), One(ways[count > 3 ? 2 : count - 1]),
           One(ways[count - 1])} {}
};

__device__ __forceinline__ Step step_at(const Steps& steps, Index i, Index batch) {
  return steps.table ? steps.table[i] : equal_step(i, steps.steps, batch, steps.reverse);
}

// The layers of a stack wait for each other: `counts` [ways, clusters, warps], how many steps each
// warp that has units has written for the next layer. One count for all would not do: a warp may
// be a step ahead of another.
struct Relay {
  unsigned *mine = nullptr, *before = nullptr;  // before: null for the first layer
  int warps = 0;

  __device__ __forceinline__ Relay(const ClusterPlan& p, const ClusterPlace& at, unsigned* counts,
                                   Index H) {
    if (!counts) return;
    const int of_warp = p.octets_of_job * octet, all = p.cluster * p.own;
    const unsigned clusters = gridDim.x / p.cluster;
    unsigned* const cluster = counts + (blockIdx.y * clusters + blockIdx.x / p.cluster) * all;
    mine = cluster + at.unit_of(p, 0) / of_warp;
    if (blockIdx.y > 0) before = cluster - clusters * all;
    warps = int((H + of_warp - 1) / of_warp);
  }

  // What the warp has written so far can be read, one step more.
  __device__ __forceinline__ void written(const ClusterPlace& at) const {
    __syncwarp();
    if (at.lane == 0) add_release(mine, 1);
  }
  // Until the layer before this one has written so many steps.
  __device__ __forceinline__ void wait(const ClusterPlace& at, Index steps) const {
    if (!before) return;
    for (int i = at.lane; i < warps; i += 32) wait_at_least(before + i, unsigned(steps));
    __syncwarp();
  }
};

}  // namespace fastrnn::cuda
