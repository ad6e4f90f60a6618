// The weights' gradients of a backward loop, once it has ended.
#pragma once

#include "cells.h"
#include "gemm_transposed_cpu.h"
#include "kernels_cpu.h"
#include "workspace.h"

namespace fastrnn::FASTRNN_ISA {

// Gradients of all rows: of the gates' two sums [N, G*H], one array where they are the same; of a
// projected h [N, P], or null.
template <class T>
struct RowGradients {
  const T *x, *h, *projected = nullptr;
};

template <class T, class Cell>
class GateWeights {
  using O = Operand<T>;
  static constexpr int G = Cell::gates, first = Cell::operand_gates;
  static constexpr int NV = 2;

 public:
  GateWeights() = default;
  GateWeights(const Backward& args, Arena& arena, int threads)
      : s_(&args),
        H_(args.hidden_size),
        P_(args.projected ? args.projected : H_),
        same_(args.gains ? 0
              : first    ? first
                         : Cell::shared_gates),
        scratch_size_(transposed_scratch<T, NV>(args.rows)) {
    const Index rows = largest_slice<T>(args.rows);
    if (args.grad_weight_ih) x_ = arena.take<O>(panel_size<T, NV>(args.input_size, rows));
    prev_ = arena.take<O>(panel_size<T, NV>(P_, rows));
    if (first || args.projected) operand_ = arena.take<O>(panel_size<T, NV>(H_, rows));
    scratch_ = arena.take<O>(scratch_size_ * threads);
  }

  // `before` are each row's h before it; `operand` [N, H], rows `stride` apart, are the last gates'
  // operands, or h before its projection. A slice of all rows at a time, whose factors stay in the
  // cache from packing to product.
  void run(const Team& team, const RowGradients<T>& grads, const T* const* before, const T* operand,
           Index stride) const {
    const Index slices = slices_of<T>(s_->rows), I = s_->input_size;
    const T* const input = static_cast<const T*>(s_->input);
    for (Index slice = 0; slice < slices; ++slice) {
      const Index row0 = s_->rows * slice / slices, rows = s_->rows * (slice + 1) / slices - row0;
      const auto pack = [&](Index n, O* packed, const auto& at) {
        pack_rows<T, NV>(team, n, rows, [&](Index row) { return at(row0 + row); }, packed);
      };
      if (slice > 0) team.wait();
      pack(P_, prev_, [&](Index row) { return before[row]; });
      if (x_) pack(I, x_, [&](Index row) { return input + row * I; });
      if (operand_) pack(H_, operand_, [&](Index row) { return operand + row * stride; });
      team.wait();
      add(team, row0, rows, grads);
    }
    if (s_->gains || !s_->grad_bias_ih || !s_->grad_bias_hh) return;
    team.wait();
    copy(team, Cell::shared_gates * H_, static_cast<const T*>(s_->grad_bias_hh),
         static_cast<T*>(s_->grad_bias_ih));
  }

 private:
  void add(const Team& team, Index row0, Index rows, const RowGradients<T>& grads) const {
    const Index I = s_->input_size, GH = G * H_, split = same_ * H_;
    T* const hh = static_cast<T*>(s_->grad_weight_hh);
    T* const ih = static_cast<T*>(s_->grad_weight_ih);
    // The columns of [N, columns in all] from `column` on; a bias gets their sums on the way.
    const auto gradient = [&](const T* grad, Index all, Index column, Index columns, void* bias,
                              const Target<T>* targets, int count) {
      T* const sums = bias ? static_cast<T*>(bias) + column : nullptr;
      transposed_product<T, NV>(team, grad + row0 * all + column, all, columns, rows, row0 > 0,
                                targets, count, scratch_ + team.rank * scratch_size_, sums);
    };
    // Layer normalisation has found the biases' own.
    void* const bias_ih = s_->gains ? nullptr : s_->grad_bias_ih;
    void* const bias_hh = s_->gains ? nullptr : s_->grad_bias_hh;
    void* const bias = bias_hh ? bias_hh : bias_ih;
    const Target<T> both[2] = {{prev_, P_, hh}, {x_, I, ih}};
    if (same_ > 0) gradient(grads.x, GH, 0, split, bias, both, ih ? 2 : 1);
    if (same_ < G) {
      const Target<T> tail[2] = {{first ? operand_ : prev_, P_, hh + split * P_},
                                 {x_, I, ih + split * I}};
      if (grads.x == grads.h) {
        gradient(grads.x, GH, split, GH - split, bias, tail, ih ? 2 : 1);
      } else {
        gradient(grads.h, GH, split, GH - split, bias_hh, &tail[0], 1);
        if (ih) gradient(grads.x, GH, split, GH - split, bias_ih, &tail[1], 1);
      }
    }
    const Target<T> projection{operand_, H_, static_cast<T*>(s_->grad_weight_hr)};
    if (grads.projected) gradient(grads.projected, P_, 0, P_, nullptr, &projection, 1);
  }

  const Backward* s_ = nullptr;
  Index H_ = 0, P_ = 0;  // P: units of h
  // The first gates, whose gradients go with x and with h itself into the weights'.
  Index same_ = 0;
  Index scratch_size_ = 0;
  O *x_ = nullptr, *prev_ = nullptr, *operand_ = nullptr, *scratch_ = nullptr;
};

}  // namespace fastrnn::FASTRNN_ISA
