// The backward pass of a layer in one launch: a cluster keeps W_hh, its blocks exchange the gates'
// gradients.
#pragma once

#include "cluster_backward_rows.h"

namespace fastrnn::cuda {

// A column of W_hh, and of `on`, which has slots 2 and 3: k is octet by octet, gate by gate, unit
// by unit; with an operand the gates after it come first.
template <class T, class Cell>
struct BackwardWeights {
  const T *weight, *on;  // [G*H, H], or null: zeros
  Index H, unit;         // of slot 0; slot 1 is the next octet
  int late;              // k of the gates after the operand

  __device__ __forceinline__ Run<T> operator()(int slot, int k) const {
    constexpr int F = Cell::operand_gates, G = Cell::gates;
    const bool early = F > 0 && k >= late;
    const int many = early ? F : G - F, place = (k - (early ? late : 0)) / octet;
    const T* const matrix = slot < 2 ? weight : on;
    const Index column = unit + slot % 2 * octet, gate = (early ? 0 : F) + place % many;
    const Index first = place / many * octet;
    Run<T> run{};
#pragma unroll
    for (int i = 0; i < octet; ++i)
      if (matrix && column < H && first + i < H)
        run.values[i] = matrix[(gate * H + first + i) * H + column];
    return run;
  }
};

template <class T, class Cell, Held held, bool stack>
__global__ void __launch_bounds__(thread_limit(held), 1)
    cluster_backward(const __grid_constant__ Ways<T, Backward> ways, ClusterPlan p,
                     unsigned* counts) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  const auto& [b, extras, steps, weight, weight_on] = ways.of[blockIdx.y];
  constexpr int G = Cell::gates, F = Cell::operand_gates, O = 2;
  FASTRNN_SHARED(unsigned char, shared);
  ClusterPlace at(p, shared, int(cluster_rank()));
  at.first_sequence = int(blockIdx.x) / p.cluster * p.tile;
  const bool speaks = at.part == 0 && at.unit_of(p, 0) < b.hidden_size;  // the job's first warp
  ClusterProduct<T, stack ? 2 * O : O, held, stack> product;
  const int late = p.first_chunks * chunk_k;
  product.fill(p, at,
               BackwardWeights<T, Cell>{weight, weight_on, b.hidden_size,
                                        at.unit_of(p, 0) + at.group, late});
  clear_rows<T>(p, at);
  BackwardRows<T, Cell> rows{b, extras, p, at};
  T* const staged = reinterpret_cast<T*>(shared + p.stage) + at.job * p.tile * O * G * octet;
  const Relay relay(p, at, counts, b.hidden_size);
  const auto fetch = [&](Index i) {
    if (stack) relay.wait(at, steps.steps - i);
    rows.fetch(step_at(steps, i, b.batch));
  };
  if (speaks) {
    rows.begin();
    fetch(steps.steps - 1);
  }
  cluster_arrive();  // every block is there, and its rows are cleared
  cluster_wait();
  // With an operand, the two products read places of their own in one buffer.
  const auto exchanged = [&](Index i) { return at.rows<T>(p, F > 0 ? 0 : i); };
  // As in the forward pass.
  const auto hand_on = [&](Index i) {
    if (!weight_on) return;
    if (speaks && i + 1 < steps.steps) relay.written(at);
    float sums[1][O][elements];
    product.template of_slots<stack ? O : 0>(p, at, exchanged(i), sums);
    void* const next = const_cast<void*>(ways.of[blockIdx.y + 1].pass.grad_output);
    if (speaks) rows.hand_on(step_at(steps, i, b.batch), sums[0], static_cast<T*>(next));
  };
  float sums[1][O][elements] = {};
  for (Index i = steps.steps - 1; i >= 0; --i) {
    const Step step = step_at(steps, i, b.batch);
    if (speaks) {
      rows.advance(step, sums[0], staged);
      __syncwarp();
      broadcast<(G - F) * O * octet>(p, at, staged, exchanged(i) + at.unit_of(p, 0) * (G - F));
    }
    if constexpr (F > 0) {
      cluster_arrive();
      if (speaks) rows.template save<F>(step, staged);
      cluster_wait();
      product.first(p, at, exchanged(i), sums);
      if (speaks) {
        T* const early = staged + p.tile * O * (G - F) * octet;
        rows.operand(step, sums[0], staged);
        __syncwarp();
        broadcast<F * O * octet>(p, at, early, exchanged(i) + late + at.unit_of(p, 0) * F);
      }
    }
    cluster_arrive();
    if (speaks) {
      rows.template save<0, F == 0 ? G : F>(step, staged);
      if (i > 0) fetch(i - 1);
    }
    const bool begins = step.prev_rows < step.rows;
    if (stack && i + 1 < steps.steps) hand_on(i + 1);
    cluster_wait();
    if constexpr (stack)
      product.template of_slots<0>(p, at, exchanged(i), sums);
    else
      product.template last<(F > 0)>(p, at, exchanged(i), sums);
    // The step is read again rather than kept: the product needs the registers.
    if (speaks && begins) rows.end(step_at(steps, i, b.batch), sums[0]);
  }
  if constexpr (stack) {
    hand_on(0);
    if (speaks && weight_on) relay.written(at);
  }
#endif
}

}  // namespace fastrnn::cuda
