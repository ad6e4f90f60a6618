// What a lane of the persistent schedules does with its rows in the forward pass.
#pragma once

#include "cluster_product.h"
#include "rough.h"

namespace fastrnn::cuda {

// The biases of a block's units, [units, biases], widened once: no step waits for the device's
// memory to have them.
template <class T, class Cell>
__device__ __forceinline__ void fill_biases(const Forward& f, const ClusterPlan& p,
                                            const ClusterPlace& at, int first_unit) {
  constexpr int G = Cell::gates, many = device::biases<Cell>;
  for (int i = int(threadIdx.x); i < p.octets() * octet; i += p.threads()) {
    const Index unit = first_unit + i;
    const auto bias = [&](const void* from, int g) {
      return from && unit < f.hidden_size
                 ? widen(static_cast<const T*>(from)[g * f.hidden_size + unit])
                 : 0.f;
    };
    float* const to = reinterpret_cast<float*>(at.shared + p.biases) + i * many;
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const float of_x = bias(f.bias_ih, g), of_h = bias(f.bias_hh, g);
      const bool shared = g < Cell::shared_gates;
      to[g] = shared ? of_x + of_h : of_x;
      if (!shared) to[G + g - Cell::shared_gates] = of_h;
    }
  }
}

// What a lane holds of the rows it works on: elements e of unit at.group of an octet.
template <class T, class Cell>
struct ForwardRows {
  static constexpr int G = Cell::gates, S = Cell::states, R = Cell::reserve, E = elements;
  static constexpr int F = Cell::operand_gates;
  using V = Gate<T>;
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

  __device__ __forceinline__ float bias(int i) const {
    const int unit = at.job * octet + at.group;
    return reinterpret_cast<const float*>(at.shared + p.biases)[unit * device::biases<Cell> + i];
  }
  __device__ __forceinline__ int sequence(int e) const { return at.first_sequence + at.column(e); }
  __device__ __forceinline__ bool active(const Step& step, int e) const {
    return at.column(e) < p.tile && sequence(e) < step.rows && unit() < f.hidden_size;
  }
  // The lane's own place for a state, or for what the operand's gates are after the states.
  __device__ __forceinline__ float& state(int s, int e) const {
    return at.own<(S + F) * E>(p, s * E + e);
  }
  // A state as the step finds it.
  __device__ __forceinline__ float before(int s, int e) const {
    return reset[e] ? 0.f : state(s, e);
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
      if (e >= p.tile) break;
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
  __device__ __forceinline__ void shares(const float (&sums)[Count][E], int e, V (&xs)[Count],
                                         V (&hs)[Count]) const {
#pragma unroll
    for (int g = 0; g < Count; ++g) {
      constexpr int shared = Cell::shared_gates;
      const float of_h = reset[e] ? 0.f : sums[g][e];
      xs[g] = V(widen(x[First + g][e]) + bias(First + g));
      hs[g] = V(First + g < shared ? of_h : of_h + bias(G + First + g - shared));
    }
  }

  // The second product's operand; leaves it in `staged` [tile, octet] for the other blocks.
  __device__ __forceinline__ void operand(const float (&sums)[at_least_one<F>][E], T* staged) {
    p.tile > 1 ? operands<E>(sums, staged) : operands<1>(sums, staged);
  }
  // The cell; leaves h in `staged` [tile, octet] for the other blocks.
  __device__ __forceinline__ void advance(const Step& step, const float (&sums)[G - F][E],
                                          T* staged) {
    p.tile > 1 ? cells<E>(step, sums, staged) : cells<1>(step, sums, staged);
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

 private:
  // Of the first Many elements: the others have no sequence.
  template <int Many>
  __device__ __forceinline__ void operands(const float (&sums)[at_least_one<F>][E], T* staged) {
    V made[Many], reserve[Many][F];
#pragma unroll
    for (int e = 0; e < Many; ++e) {
      V xs[F], hs[F];
      shares<0>(sums, e, xs, hs);
      const V prev[1] = {V(before(0, e))};
      made[e] = Cell::operand(xs, hs, prev, reserve[e]);
    }
#pragma unroll
    for (int e = 0; e < Many; ++e) {
#pragma unroll
      for (int r = 0; r < F; ++r) state(S + r, e) = plain(reserve[e][r]);
      if (at.column(e) < p.tile) narrow(plain(made[e]), &staged[at.column(e) * octet + at.group]);
    }
  }

  template <int Many>
  __device__ __forceinline__ void cells(const Step& step, const float (&sums)[G - F][E],
                                        T* staged) {
    V every[Many][S], reserve[Many][at_least_one<R>];
    // Without a branch between them where V has none.
#pragma unroll
    for (int e = 0; e < Many; ++e) {
      V xs[G - F], hs[G - F], prev[S];
      shares<F>(sums, e, xs, hs);
#pragma unroll
      for (int r = 0; r < F; ++r) reserve[e][r] = V(state(S + r, e));
#pragma unroll
      for (int s = 0; s < S; ++s) prev[s] = V(before(s, e));
      Cell::forward(xs, hs, prev, every[e], reserve[e]);
    }
#pragma unroll
    for (int e = 0; e < Many; ++e) {
      const bool works = active(step, e);
#pragma unroll
      for (int s = 0; s < S; ++s) {
        float after = plain(every[e][s]);
        narrow(after, &made[s][e]);
        if (extras.zoned && works)
          after = mixed(before(s, e), after, extras.kept<float>(s, step.time, sequence(e), unit()));
        if (!works) after = before(s, e);
        state(s, e) = after;
        narrow(after, &next[s][e]);
      }
#pragma unroll
      for (int r = 0; r < R; ++r) narrow(plain(reserve[e][r]), &kept[r][e]);
      if (at.column(e) < p.tile) staged[at.column(e) * octet + at.group] = next[0][e];
    }
  }
};

}  // namespace fastrnn::cuda
