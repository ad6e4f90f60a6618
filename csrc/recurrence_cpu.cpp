// The whole sequence of one layer on the CPU: projection, time loop, gradients, in one parallel
// region. Built once per instruction set (FASTRNN_ISA).
#include "recurrence_cpu.h"

#include <cstring>

#include "recurrence_backward_cpu.h"
#include "recurrence_forward_cpu.h"

namespace fastrnn::FASTRNN_ISA {

template <class Loop, class Arguments>
std::int64_t workspace(const Arguments& arguments, int threads) {
  return Loop(arguments, nullptr, threads).bytes();
}

template <class Loop, class Arguments>
void run(const Team& team, const Arguments& arguments, char* workspace) {
  Loop(arguments, workspace, team.size).run(team);
}

template <class T, class Cell>
constexpr CellKernels cell_kernels = {
    {workspace<ForwardLoop<T, Cell>, Forward>, run<ForwardLoop<T, Cell>, Forward>},
    {workspace<BackwardLoop<T, Cell>, Backward>, run<BackwardLoop<T, Cell>, Backward>}};

template <class Cell>
const CellKernels* of_dtype(int bytes) {
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
