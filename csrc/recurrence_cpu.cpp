// The whole sequence of one layer on the CPU: projection, time loop, gradients, in one parallel
// region. Built once per instruction set (FASTRNN_ISA).
#include <cstring>

#include "kernels_cpu.h"
#include "recurrence_backward_cpu.h"
#include "recurrence_forward_cpu.h"

namespace fastrnn::FASTRNN_ISA {

// Packs the weights into the workspace itself.
template <class T, class Cell>
class Packing {
 public:
  Packing(const Weights& weights, char* workspace, int)
      : weights_(weights),
        arena_(workspace),
        packed_(arena_, weights.input_size, weights.hidden_size, weights.projected) {}
  Index bytes() const { return arena_.bytes(); }
  void run(const Team& team) const {
    packed_.pack(team, static_cast<const T*>(weights_.weight_ih),
                 static_cast<const T*>(weights_.weight_hh),
                 static_cast<const T*>(weights_.weight_hr));
  }

 private:
  const Weights& weights_;
  Arena arena_;
  const PackedWeights<T, Cell> packed_;
};

template <class T, class Cell>
constexpr CellKernels cell_kernels = {
    {kernel<ForwardLoop<T, Cell>, Forward>, kernel<BackwardLoop<T, Cell>, Backward>},
    kernel<Packing<T, Cell>, Weights>};

template <class Cell>
const CellKernels* of_dtype(int bytes) {
  if (bytes == 2) return &cell_kernels<Bf16, Cell>;
  return bytes == 4 ? &cell_kernels<float, Cell> : &cell_kernels<double, Cell>;
}

const CellKernels* kernels(const char* cell, int dtype_bytes) {
  const auto is = [cell](const char* name) { return std::strcmp(cell, name) == 0; };
  if (is("lstm")) return of_dtype<Lstm>(dtype_bytes);
  if (is("gru")) return of_dtype<Gru>(dtype_bytes);
  if (is("gru_reset_before")) return of_dtype<GruResetBefore>(dtype_bytes);
  if (is("rnn_tanh")) return of_dtype<RnnTanh>(dtype_bytes);
  if (is("rnn_relu")) return of_dtype<RnnRelu>(dtype_bytes);
  return nullptr;
}

}  // namespace fastrnn::FASTRNN_ISA
