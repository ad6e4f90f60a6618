// What a lane of the persistent schedules does with its rows in the backward pass.
#pragma once

#include "cluster_forward.h"
#include "step_backward.h"

namespace fastrnn::cuda {

// What a lane holds of the rows it works on: element e of unit at.group of octet o.
template <class T, class Cell>
struct BackwardRows {
  static constexpr int G = Cell::gates, S = Cell::states, R = Cell::reserve, E = elements, O = 2;
  static constexpr int F = Cell::operand_gates;
  using V = Gate<T>;
  const Backward& b;
  const Regularisers& extras;
  const ClusterPlan& p;
  const ClusterPlace& at;
  // Of the step to come.
  T reserve[at_least_one<R>][O][E], before[S][O][E], after[S][O][E];
  T sent[O][E];           // grad_output
  bool reset[E], cut[E];  // its rows; what comes back to them
  // Of the step that was, where they are not what the product takes.
  T of_x[device::shared_gradients<Cell> ? 1 : G][O][E];
  T operands[O][E];  // of a cell that has them

  __device__ __forceinline__ int unit(int o) const { return at.unit_of(p, o) + at.group; }
  __device__ __forceinline__ int sequence(int e) const { return at.first_sequence + at.column(e); }
  __device__ __forceinline__ bool active(const Step& step, int o, int e) const {
    return at.column(e) < p.tile && sequence(e) < step.rows && unit(o) < b.hidden_size;
  }
  // The lane's own place for a state's gradient, or after them for those of the operand's gates.
  __device__ __forceinline__ float& carry(int s, int o, int e) const {
    return at.own<(S + F) * O * E>(p, (s * O + o) * E + e);
  }
  // What the product takes, [tile, O, gates, octet], those after the operand's apart and first.
  __device__ __forceinline__ T* stage(T* staged, int g, int o, int e) const {
    const int row = at.column(e) * O + o;
    if (g >= F) return staged + (row * (G - F) + g - F) * octet + at.group;
    return staged + (p.tile * O * (G - F) + row * F + g) * octet + at.group;
  }
  __device__ __forceinline__ T optional(const void* from, Index i) const {
    return from ? static_cast<const T*>(from)[i] : T{};
  }

  __device__ __forceinline__ void begin() const {
#pragma unroll
    for (int s = 0; s < S; ++s)
#pragma unroll
      for (int o = 0; o < O; ++o)
#pragma unroll
        for (int e = 0; e < E; ++e) {
          const bool there = at.column(e) < p.tile && sequence(e) < b.batch;
          const Index from = (s * b.batch + sequence(e)) * b.hidden_size + unit(o);
          carry(s, o, e) =
              there && unit(o) < b.hidden_size ? widen(optional(b.grad_state_n, from)) : 0.f;
        }
  }

  __device__ __forceinline__ void fetch(const Step& step) {
    const Index H = b.hidden_size;
#pragma unroll
    for (int e = 0; e < E; ++e) {
      const Index row = step.row + sequence(e);
      const bool there = active(step, 0, e);
      const bool ends = sequence(e) >= step.next_rows;
      reset[e] = there && extras.reset(row);
      cut[e] = there && !ends && extras.reset(step.next_row + sequence(e));
#pragma unroll
      for (int o = 0; o < O; ++o) {
        if (!active(step, o, e)) continue;
        const Index at_row = row * H + unit(o);
        const RowStates<T> states{b, step, sequence(e)};
        const T* const kept =
            static_cast<const T*>(b.reserve) + row * extras.slots<Cell>() * H + unit(o);
#pragma unroll
        for (int r = 0; r < R; ++r) reserve[r][o][e] = kept[r * H];
        sent[o][e] = optional(b.grad_output, at_row);
#pragma unroll
        for (int s = 0; s < S; ++s) {
          before[s][o][e] = states.before(s)[unit(o)];
          after[s][o][e] = extras.zoned ? kept[(R + s) * H] : states.after(s)[unit(o)];
        }
      }
    }
  }

  // Of the sequences whose first step is behind us: their initial states' gradient.
  __device__ __forceinline__ void end(const Step& step, const float (&sums)[O][E]) const {
#pragma unroll
    for (int o = 0; o < O; ++o)
#pragma unroll
      for (int e = 0; e < E; ++e) {
        if (!active(step, o, e) || sequence(e) < step.prev_rows) continue;
        const bool lost = extras.reset(step.row + sequence(e));
#pragma unroll
        for (int s = 0; s < S; ++s) {
          const float grad = carry(s, o, e) + (s == 0 ? sums[o][e] : 0.f);
          narrow(lost ? 0.f : grad, static_cast<T*>(b.grad_state) +
                                        (s * b.batch + sequence(e)) * b.hidden_size + unit(o));
        }
      }
  }

  // The cell; leaves what the product takes in `staged`.
  __device__ __forceinline__ void advance(const Step& step, const float (&sums)[O][E], T* staged) {
#pragma unroll
    for (int o = 0; o < O; ++o)
#pragma unroll
      for (int e = 0; e < E; ++e) {
        if (at.column(e) >= p.tile) continue;
        if (!active(step, o, e)) {
#pragma unroll
          for (int g = F; g < G; ++g) *stage(staged, g, o, e) = T{};
          continue;
        }
        V kept[at_least_one<R>], prev[S], next[S], arrived[S];
        float grad[S], bypass[S];
#pragma unroll
        for (int r = 0; r < R; ++r) kept[r] = V(widen(reserve[r][o][e]));
#pragma unroll
        for (int s = 0; s < S; ++s) {
          prev[s] = V(reset[e] ? 0.f : widen(before[s][o][e]));
          next[s] = V(widen(after[s][o][e]));
          // Of a sequence that ends here nothing was sent: its sums are zeros.
          grad[s] = cut[e] ? 0.f : carry(s, o, e);
          if (s == 0 && !cut[e]) grad[s] += sums[o][e];
          if (s == 0) grad[s] += widen(sent[o][e]);
          // Rarely there, so not fetched beforehand.
          if (s > 0 && b.grad_cells)
            grad[s] +=
                widen(optional(b.grad_cells, (step.row + sequence(e)) * b.hidden_size + unit(o)));
          bypass[s] = 0.f;
          if (extras.zoned) {
            const float share = extras.kept<float>(s, step.time, sequence(e), unit(o));
            bypass[s] = around(grad[s], share);
            grad[s] = through(grad[s], share);
          }
          arrived[s] = V(grad[s]);
        }
        V to_x[G], to_h[G], to_prev[S];
        Cell::backward(kept, prev, next, arrived, to_x, to_h, to_prev);
#pragma unroll
        for (int s = 0; s < S; ++s) carry(s, o, e) = plain(to_prev[s]) + bypass[s];
#pragma unroll
        for (int g = 0; g < F; ++g) carry(S + g, o, e) = plain(to_x[g]);
#pragma unroll
        for (int g = F; g < G; ++g) {
          constexpr bool shared = device::shared_gradients<Cell>;
          narrow(plain(shared ? to_x[g] : to_h[g]), stage(staged, g, o, e));
          if constexpr (!shared) narrow(plain(to_x[g]), &of_x[g][o][e]);
        }
      }
  }

  // What follows from the operand's gradient: the gates that it was made from.
  __device__ __forceinline__ void operand(const Step& step, const float (&sums)[O][E], T* staged) {
#pragma unroll
    for (int o = 0; o < O; ++o)
#pragma unroll
      for (int e = 0; e < E; ++e) {
        if (at.column(e) >= p.tile) continue;
        if (!active(step, o, e)) {
#pragma unroll
          for (int g = 0; g < F; ++g) *stage(staged, g, o, e) = T{};
          continue;
        }
        float kept[R], to_x[F], to_prev[1] = {carry(0, o, e)};
        const float prev[1] = {reset[e] ? 0.f : widen(before[0][o][e])};
#pragma unroll
        for (int r = 0; r < R; ++r) kept[r] = widen(reserve[r][o][e]);
#pragma unroll
        for (int g = 0; g < F; ++g) to_x[g] = carry(S + g, o, e);
        const float made = Cell::operand_backward(kept, prev, sums[o][e], to_x, to_prev);
        carry(0, o, e) = to_prev[0];
        narrow(made, &operands[o][e]);
#pragma unroll
        for (int g = 0; g < F; ++g) narrow(to_x[g], stage(staged, g, o, e));
      }
  }

  // A step's sums of the product by W_ih.
  __device__ __forceinline__ void hand_on(const Step& step, const float (&sums)[O][E],
                                          T* grad_input) const {
#pragma unroll
    for (int o = 0; o < O; ++o)
#pragma unroll
      for (int e = 0; e < E; ++e)
        if (active(step, o, e))
          narrow(sums[o][e], grad_input + (step.row + sequence(e)) * b.hidden_size + unit(o));
  }

  // Gates First to Last - 1; with the last ones also h before the step, else the operand. Before
  // the next step is fetched.
  template <int First = 0, int Last = G>
  __device__ __forceinline__ void save(const Step& step, T* staged) const {
    const Index H = b.hidden_size;
#pragma unroll
    for (int o = 0; o < O; ++o)
#pragma unroll
      for (int e = 0; e < E; ++e) {
        if (!active(step, o, e)) continue;
        const Index row = step.row + sequence(e), at_row = row * G * H + unit(o);
#pragma unroll
        for (int g = First; g < Last; ++g) {
          const T sum = *stage(staged, g, o, e);
          if constexpr (device::shared_gradients<Cell>) {
            static_cast<T*>(b.grad_x)[at_row + g * H] = sum;
          } else {
            static_cast<T*>(b.grad_x)[at_row + g * H] = of_x[g][o][e];
            static_cast<T*>(b.grad_h)[at_row + g * H] = sum;
          }
        }
        if (Last < G) static_cast<T*>(b.operand)[row * H + unit(o)] = operands[o][e];
        if (Last == G && b.previous)
          static_cast<T*>(b.previous)[row * H + unit(o)] = reset[e] ? T{} : before[0][o][e];
      }
  }
};

}  // namespace fastrnn::cuda
