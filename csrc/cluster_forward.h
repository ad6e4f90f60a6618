// The forward pass of a layer in one launch: a cluster keeps W_hh, its blocks exchange h.
#pragma once

#include "cluster_product.h"
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

// What a lane holds of the rows it works on: elements e of unit at.group of an octet.
template <class T, class Cell>
struct ForwardRows {
  static constexpr int G = Cell::gates, S = Cell::states, R = Cell::reserve, E = elements;
  static constexpr int F = Cell::operand_gates;
  const Forward& f;
  const Regularisers& extras;
  const ClusterPlan& p;
  const ClusterPlace& at;
  T x[G][E];      // of the step to come
  bool reset[E];  // its rows
  T next[S][E], made[S][E], kept[at_least_one<R>][E];

  __device__ __forceinline__ ForwardRows(const Forward& f, const Regularisers& extras,
                                         const ClusterPlan& p, const ClusterPlace& at)
      : f(f), extras(extras), p(p), at(at) {}

  __device__ __forceinline__ int unit() const { return at.unit_of(p, 0) + at.group; }

  __device__ __forceinline__ float bias(const void* from, int g) const {
    return from && unit() < f.hidden_size
               ? widen(static_cast<const T*>(from)[g * f.hidden_size + unit()])
               : 0.f;
  }
  __device__ __forceinline__ int sequence(int e) const { return at.first_sequence + at.column(e); }
  __device__ __forceinline__ bool active(const Step& step, int e) const {
    return at.column(e) < p.tile && sequence(e) < step.rows && unit() < f.hidden_size;
  }
  // The lane's own place for a state, or for what the operand's gates are after the states.
  __device__ __forceinline__ float& state(int s, int e) const {
    return at.own<(S + F) * E>(p, s * E + e);
  }

  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int s = 0; s < S; ++s)
#pragma unroll
      for (int e = 0; e < E; ++e) {
        const bool there = at.column(e) < p.tile && sequence(e) < f.batch && unit() < f.hidden_size;
        const Index from = (s * f.batch + sequence(e)) * f.hidden_size + unit();
        state(s, e) = there ? widen(static_cast<const T*>(f.state)[from]) : 0.f;
      }
  }

  // What gates First to Last - 1 need.
  template <int First = 0, int Last = G>
  __device__ __forceinline__ void fetch(const Step& step) {
#pragma unroll
    for (int e = 0; e < E; ++e) {
      const Index row = step.row + sequence(e), H = f.hidden_size;
      const bool there = active(step, e);
      reset[e] = there && extras.reset(row);
#pragma unroll
      for (int g = First; g < Last; ++g)
        x[g][e] = there ? static_cast<const T*>(f.x_proj)[(row * G + g) * H + unit()] : T{};
    }
  }

  // The shares from input and state of Count gates from First on, of element e.
  template <int First, int Count>
  __device__ __forceinline__ void shares(const float (&sums)[Count][E], int e, float (&xs)[Count],
                                         float (&hs)[Count]) const {
#pragma unroll
    for (int g = 0; g < Count; ++g) {
      xs[g] = widen(x[First + g][e]) + bias(f.bias_ih, First + g);
      hs[g] = (reset[e] ? 0.f : sums[g][e]) + bias(f.bias_hh, First + g);
    }
  }

  // The second product's operand; leaves it in `staged` [tile, octet] for the other blocks.
  __device__ __forceinline__ void operand(const float (&sums)[at_least_one<F>][E], T* staged) {
#pragma unroll
    for (int e = 0; e < E; ++e) {
      float xs[F], hs[F], reserve[F];
      shares<0>(sums, e, xs, hs);
      const float prev[1] = {reset[e] ? 0.f : state(0, e)};
      const float made = Cell::operand(xs, hs, prev, reserve);
#pragma unroll
      for (int r = 0; r < F; ++r) state(S + r, e) = reserve[r];
      if (at.column(e) < p.tile) narrow(made, &staged[at.column(e) * octet + at.group]);
    }
  }

  // The cell; leaves h in `staged` [tile, octet] for the other blocks.
  __device__ __forceinline__ void advance(const Step& step, const float (&sums)[G - F][E],
                                          T* staged) {
#pragma unroll
    for (int e = 0; e < E; ++e) {
      float xs[G - F], hs[G - F], prev[S], after[S], reserve[at_least_one<R>];
      shares<F>(sums, e, xs, hs);
#pragma unroll
      for (int r = 0; r < F; ++r) reserve[r] = state(S + r, e);
#pragma unroll
      for (int s = 0; s < S; ++s) prev[s] = reset[e] ? 0.f : state(s, e);
      Cell::forward(xs, hs, prev, after, reserve);
      const bool works = active(step, e);
#pragma unroll
      for (int s = 0; s < S; ++s) {
        narrow(after[s], &made[s][e]);
        if (extras.zoned && works)
          after[s] =
              mixed(prev[s], after[s], extras.kept<float>(s, step.time, sequence(e), unit()));
        if (!works) after[s] = prev[s];
        state(s, e) = after[s];
        narrow(after[s], &next[s][e]);
      }
#pragma unroll
      for (int r = 0; r < R; ++r) narrow(reserve[r], &kept[r][e]);
      if (at.column(e) < p.tile) staged[at.column(e) * octet + at.group] = next[0][e];
    }
  }

  __device__ __forceinline__ void save(const Step& step) const {
    const Index H = f.hidden_size;
#pragma unroll
    for (int e = 0; e < E; ++e) {
      if (!active(step, e)) continue;
      const Index row = step.row + sequence(e);
      static_cast<T*>(f.output)[row * H + unit()] = next[0][e];
      if (S > 1 && f.cells) static_cast<T*>(f.cells)[row * H + unit()] = next[S - 1][e];
      if (!f.reserve) continue;
      T* const reserve = static_cast<T*>(f.reserve) + row * extras.slots<Cell>() * H + unit();
#pragma unroll
      for (int r = 0; r < R; ++r) reserve[r * H] = kept[r][e];
      if (extras.zoned)
#pragma unroll
        for (int s = 0; s < S; ++s) reserve[(R + s) * H] = made[s][e];
    }
  }

  // A step's sums of the product by the next layer's W_ih.
  __device__ __forceinline__ void hand_on(const Step& step, const float (&sums)[G][E],
                                          T* x_proj) const {
#pragma unroll
    for (int e = 0; e < E; ++e) {
      if (!active(step, e)) continue;
      const Index row = step.row + sequence(e);
#pragma unroll
      for (int g = 0; g < G; ++g)
        narrow(sums[g][e], x_proj + (row * G + g) * f.hidden_size + unit());
    }
  }

  __device__ __forceinline__ void end() const {
#pragma unroll
    for (int s = 0; s < S; ++s)
#pragma unroll
      for (int e = 0; e < E; ++e)
        if (at.column(e) < p.tile && sequence(e) < f.batch && unit() < f.hidden_size)
          narrow(state(s, e),
                 static_cast<T*>(f.running) + (s * f.batch + sequence(e)) * f.hidden_size + unit());
  }
};

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
    float sums[G][elements];
    product.template of_slots<stack ? G : 0, G>(p, at, exchanged(i + 1), sums);
    void* const next = const_cast<void*>(ways.of[blockIdx.y + 1].pass.x_proj);
    if (speaks) rows.hand_on(step_at(steps, i, f.batch), sums, static_cast<T*>(next));
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
      float sums[F][elements];
      product.template of_slots<0, F>(p, at, operands, sums);
      if (speaks) {
        rows.operand(sums, staged);
        __syncwarp();
        broadcast(p, at, staged, octet, at.rows<T>(p, 1) + at.unit_of(p, 0));
      }
      cluster_arrive();
      cluster_wait();
      operands = at.rows<T>(p, 1);
    }
    float sums[L][elements];
    product.template of_slots<F, L>(p, at, operands, sums);
    if (speaks) {
      rows.advance(step, sums, staged);
      __syncwarp();
      if (stack || !last) broadcast(p, at, staged, octet, exchanged(i + 1) + at.unit_of(p, 0));
    }
    // What the others wait for is on its way; the rest is done while they wait. After the last
    // step only the next layer wants what is exchanged.
    if (stack || !last) cluster_arrive();
    if (speaks) rows.save(step);
    if (!stack && last) break;
    if (!last) {
      step = step_at(steps, i + 1, f.batch);
      if (speaks) fetch(i + 1, step);
    }
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
