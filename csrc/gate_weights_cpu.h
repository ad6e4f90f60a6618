// The weights' gradients of the backward loop, once it has ended.
#pragma once

#include "cells.h"
#include "gemm_transposed_cpu.h"
#include "kernels_cpu.h"
#include "workspace.h"

namespace fastrnn::FASTRNN_ISA {

template <class T, class Cell>
class GateWeights {
  using O = Operand<T>;
  static constexpr int G = Cell::gates, first = Cell::operand_gates;
  // The first gates, whose gradients go with x and with h itself into the weights'.
  static constexpr int same = first ? first : Cell::shared_gates;
  static constexpr int NV = 2;

 public:
  GateWeights() = default;
  GateWeights(const Backward& args, Arena& arena, int threads)
      : s_(&args), H_(args.hidden_size), scratch_size_(transposed_scratch<T, NV>(args.rows)) {
    const Index rows = largest_slice<T>(args.rows);
    if (args.grad_weight_ih) x_ = arena.take<O>(panel_size<T, NV>(args.input_size, rows));
    prev_ = arena.take<O>(panel_size<T, NV>(H_, rows));
    if (first) operand_ = arena.take<O>(panel_size<T, NV>(H_, rows));
    scratch_ = arena.take<O>(scratch_size_ * threads);
  }

  // From the gradients of the gates' two sums [N, G*H] and the operands [N, H]; `before` are each
  // row's h before it. A slice of all rows at a time, whose factors stay in the cache from packing
  // to product.
  void run(const Team& team, const T* grad_x, const T* grad_h, const T* operand,
           const T* const* before) const {
    const Index slices = slices_of<T>(s_->rows), I = s_->input_size;
    const T* const input = static_cast<const T*>(s_->input);
    for (Index slice = 0; slice < slices; ++slice) {
      const Index row0 = s_->rows * slice / slices, rows = s_->rows * (slice + 1) / slices - row0;
      const auto pack = [&](Index n, O* packed, const auto& at) {
        pack_rows<T, NV>(team, n, rows, [&](Index row) { return at(row0 + row); }, packed);
      };
      if (slice > 0) team.wait();
      pack(H_, prev_, [&](Index row) { return before[row]; });
      if (x_) pack(I, x_, [&](Index row) { return input + row * I; });
      if (first) pack(H_, operand_, [&](Index row) { return operand + row * H_; });
      team.wait();
      add(team, row0, rows, grad_x, grad_h);
    }
    if (!s_->grad_bias_ih || !s_->grad_bias_hh) return;
    team.wait();
    copy(team, Cell::shared_gates * H_, static_cast<const T*>(s_->grad_bias_hh),
         static_cast<T*>(s_->grad_bias_ih));
  }

 private:
  void add(const Team& team, Index row0, Index rows, const T* grad_x, const T* grad_h) const {
    const Index I = s_->input_size, GH = G * H_;
    T* const hh = static_cast<T*>(s_->grad_weight_hh);
    T* const ih = static_cast<T*>(s_->grad_weight_ih);
    const Target<T> x{x_, I, ih}, prev{prev_, H_, hh};
    // The bias of the product whose gradients these are gets their sums on the way.
    const auto gradient = [&](const T* grad, Index first_gate, Index gates, void* bias,
                              const Target<T>* targets, int count) {
      T* const sums = bias ? static_cast<T*>(bias) + first_gate * H_ : nullptr;
      transposed_product<T, NV>(team, grad + row0 * GH + first_gate * H_, GH, gates * H_, rows,
                                row0 > 0, targets, count, scratch_ + team.rank * scratch_size_,
                                sums);
    };
    void* const bias = s_->grad_bias_hh ? s_->grad_bias_hh : s_->grad_bias_ih;
    const Target<T> both[2] = {prev, x};
    gradient(grad_x, 0, same, bias, both, ih ? 2 : 1);
    if constexpr (same < G) {
      const Index split = same * H_;
      const Target<T> tail[2] = {{first ? operand_ : prev_, H_, hh + split * H_},
                                 {x_, I, ih + split * I}};
      if constexpr (shared_gradients<Cell>) {
        gradient(grad_x, same, G - same, bias, tail, ih ? 2 : 1);
      } else {
        gradient(grad_h, same, G - same, s_->grad_bias_hh, &tail[0], 1);
        if (ih) gradient(grad_x, same, G - same, s_->grad_bias_ih, &tail[1], 1);
      }
    }
  }

  const Backward* s_ = nullptr;
  Index H_ = 0, scratch_size_ = 0;
  O *x_ = nullptr, *prev_ = nullptr, *operand_ = nullptr, *scratch_ = nullptr;
};

}  // namespace fastrnn::FASTRNN_ISA
