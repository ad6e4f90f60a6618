// The weights' gradients of the loops over whole rows, once these have ended.
#pragma once

#include "gemm_transposed_cpu.h"
#include "kernels_cpu.h"
#include "rows_cpu.h"
#include "workspace.h"

namespace fastrnn::FASTRNN_ISA {

template <class T, class Cell>
class RowsWeights {
  static constexpr int NV = 2;

 public:
  RowsWeights() = default;
  RowsWeights(const Backward& args, Arena& arena, int threads)
      : s_(&args),
        H_(args.hidden_size),
        P_(args.projected ? args.projected : H_),
        scratch_size_(transposed_scratch<T, NV>(args.rows)) {
    const Index rows = largest_slice<T>(args.rows);
    prev_ = arena.take<T>(panel_size<T, NV>(P_, rows));
    if (args.grad_weight_ih) x_ = arena.take<T>(panel_size<T, NV>(args.input_size, rows));
    if (args.projected) unprojected_ = arena.take<T>(panel_size<T, NV>(H_, rows));
    scratch_ = arena.take<T>(scratch_size_ * threads);
  }

  // From the gradients of the gates' two sums [N, G*H] and of h [N, P], projected; `before` are
  // each row's states before it. Layer normalisation has found the biases' own.
  void run(const Team& team, const T* grad_x, const T* grad_h, const T* grad_output,
           const T* const* before) const {
    const Index N = s_->rows, I = s_->input_size, GH = Cell::gates * H_;
    const Index slots = Slots<Cell>(*s_).count * H_;
    const T* const input = static_cast<const T*>(s_->input);
    const T* const reserve = static_cast<const T*>(s_->reserve);
    T *const ih = static_cast<T*>(s_->grad_bias_ih), *const hh = static_cast<T*>(s_->grad_bias_hh);
    const Target<T> targets[2] = {{prev_, P_, static_cast<T*>(s_->grad_weight_hh)},
                                  {x_, I, static_cast<T*>(s_->grad_weight_ih)}};
    const Target<T> unprojected{unprojected_, H_, static_cast<T*>(s_->grad_weight_hr)};
    const Index slices = slices_of<T>(N);
    for (Index slice = 0; slice < slices; ++slice) {
      const Index row0 = N * slice / slices, rows = N * (slice + 1) / slices - row0;
      const auto pack = [&](Index n, T* packed, const auto& at) {
        pack_rows<T, NV>(team, n, rows, [&](Index row) { return at(row0 + row); }, packed);
      };
      const auto gradient = [&](const T* grad, Index n, const Target<T>* of, int count, T* bias) {
        transposed_product<T, NV>(team, grad + row0 * n, n, n, rows, row0 > 0, of, count,
                                  scratch_ + team.rank * scratch_size_, bias);
      };
      if (slice > 0) team.wait();
      pack(P_, prev_, [&](Index row) { return before[row]; });
      if (x_) pack(I, x_, [&](Index row) { return input + row * I; });
      if (unprojected_)
        pack(H_, unprojected_,
             [&](Index row) { return reserve + row * slots + Cell::reserve * H_; });
      team.wait();
      if (s_->gains) {
        gradient(grad_h, GH, targets, 1, nullptr);
        if (x_) gradient(grad_x, GH, targets + 1, 1, nullptr);
      } else {
        gradient(grad_x, GH, targets, x_ ? 2 : 1, hh ? hh : ih);
        gradient(grad_output, P_, &unprojected, 1, nullptr);
      }
    }
    if (s_->gains || !ih || !hh) return;
    team.wait();
    copy(team, GH, hh, ih);
  }

 private:
  const Backward* s_ = nullptr;
  Index H_ = 0, P_ = 0, scratch_size_ = 0;
  T *prev_ = nullptr, *x_ = nullptr, *unprojected_ = nullptr, *scratch_ = nullptr;
};

}  // namespace fastrnn::FASTRNN_ISA
