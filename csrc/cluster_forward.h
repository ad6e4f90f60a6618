// The forward pass of a layer in one launch: a cluster keeps W_hh, its blocks exchange h.
#pragma once

#include "cluster_forward_rows.h"
#include "cluster_ways.h"

namespace fastrnn::cuda {

// Every buffer of the exchanged rows: zeros, as no number may meet a weight's zero as NaN.
template <class T>
__device__ __forceinline__ void clear_rows(const ClusterPlan& p, const ClusterPlace& at) {
  const Packet<T, piece<T>> zeros{};
  T* const rows = reinterpret_cast<T*>(at.shared + p.rows);
  for (int i = int(threadIdx.x); i < p.buffers * p.tile * p.stride / piece<T>; i += p.threads())
    store(zeros, rows + i * piece<T>);
}

// A row of a gate of W_hh, and of `on`, which has the slots after its gates: k is the unit it
// weighs.
template <class T>
struct ForwardWeights {
  const T *weight, *on;  // [G*H, H], or null: zeros
  Index H, unit;
  int gates;

  __device__ __forceinline__ Run<T> operator()(int slot, int k) const {
    const T* const matrix = slot < gates ? weight : on;
    const T* const from = matrix + (slot % gates * H + unit) * H + k;
    Run<T> run{};
    if (!matrix || unit >= H) return run;
    // Eight neighbours can be read at once.
    const bool whole = H % octet == 0 && reinterpret_cast<std::uintptr_t>(matrix) % 16 == 0;
    if (whole && k + octet <= H) return load_run(from);
    for (int i = 0; i < octet; ++i)
      if (k + i < H) run.values[i] = from[i];
    return run;
  }
};

// stack: the ways are layers, each reading what the one before it writes.
template <class T, class Cell, Held held, bool stack>
__global__ void __launch_bounds__(thread_limit(held), 1)
    cluster_forward(const __grid_constant__ Ways<T, Forward> ways, ClusterPlan p,
                    unsigned* counts) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  const auto& [f, extras, steps, weight, weight_on] = ways.of[blockIdx.y];
  FASTRNN_SHARED(unsigned char, shared);
  ClusterPlace at(p, shared, int(cluster_rank()));
  at.first_sequence = int(blockIdx.x) / p.cluster * p.tile;
  const Index H = f.hidden_size;
  const bool speaks = at.part == 0 && at.unit_of(p, 0) < H;  // the job's first warp, if any
  constexpr int G = Cell::gates;
  ClusterProduct<T, stack ? 2 * G : G, held, stack> product;
  product.fill(p, at, ForwardWeights<T>{weight, weight_on, H, at.unit_of(p, 0) + at.group, G});
  clear_rows<T>(p, at);
  fill_biases<T, Cell>(f, p, at, at.first_octet * octet);
  ForwardRows<T, Cell> rows(f, extras, p, at);
  T* const staged = reinterpret_cast<T*>(shared + p.stage) + at.job * p.tile * octet;
  // With an operand, h has one buffer and the operand the other.
  constexpr int F = Cell::operand_gates, L = G - F;
  const auto exchanged = [&](Index i) { return at.rows<T>(p, F > 0 ? 0 : i); };
  const Relay relay(p, at, counts, H);
  // What step i has exchanged, for the next layer. That it can be read is said a step later, when
  // it need not be waited for.
  const auto hand_on = [&](Index i) {
    if (!weight_on) return;
    if (speaks && i > 0) relay.written(at);
    float sums[1][G][elements];
    product.template of_slots<stack ? G : 0>(p, at, exchanged(i + 1), sums);
    void* const next = const_cast<void*>(ways.of[blockIdx.y + 1].pass.x_proj);
    if (speaks) rows.hand_on(step_at(steps, i, f.batch), sums[0], static_cast<T*>(next));
  };
  const auto fetch = [&](Index i, const Step& step) {
    if (stack) relay.wait(at, i + 1);
    rows.fetch(step);
  };
  Step step = step_at(steps, 0, f.batch);
  __syncthreads();
  for (Index i = threadIdx.x; i < p.tile * H; i += p.threads()) {
    const Index n = i / H, unit = i % H, sequence = at.first_sequence + n;
    if (sequence < f.batch)
      at.rows<T>(p, 0)[n * p.stride + unit] = static_cast<const T*>(f.state)[sequence * H + unit];
  }
  if (speaks) {
    rows.begin();
    fetch(0, step);
  }
  cluster_arrive();  // every block is there, and its rows are filled
  cluster_wait();
  for (Index i = 0; i < steps.steps; ++i) {
    const bool last = i + 1 == steps.steps;
    const T* operands = exchanged(i);
    if constexpr (F > 0) {
      float sums[1][F][elements];
      product.template of_slots<0>(p, at, operands, sums);
      if (speaks) {
        rows.operand(sums[0], staged);
        __syncwarp();
        broadcast<octet>(p, at, staged, at.rows<T>(p, 1) + at.unit_of(p, 0));
      }
      cluster_arrive();
      cluster_wait();
      operands = at.rows<T>(p, 1);
    }
    float sums[1][L][elements];
    product.template of_slots<F>(p, at, operands, sums);
    if (speaks) {
      rows.advance(step, sums[0], staged);
      __syncwarp();
      if (stack || !last) broadcast<octet>(p, at, staged, exchanged(i + 1) + at.unit_of(p, 0));
    }
    // What the others wait for is on its way; the rest is done while they wait. After the last
    // step only the next layer wants what is exchanged.
    if (stack || !last) cluster_arrive();
    const Step next = last ? step : step_at(steps, i + 1, f.batch);
    if (speaks) {
      if (!last) fetch(i + 1, next);  // arrives while this step's results are written
      rows.save(step);
    }
    if (!stack && last) break;
    step = next;
    if (stack && i > 0) hand_on(i - 1);
    cluster_wait();
  }
  if (speaks) rows.end();
  if constexpr (stack) {
    __syncthreads();  // the last partial sums have been read
    hand_on(steps.steps - 1);
    if (speaks && weight_on) relay.written(at);
  }
#endif
}

}  // namespace fastrnn::cuda
