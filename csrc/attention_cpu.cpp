// Masked-softmax attention on the CPU. Built once per instruction set (FASTRNN_ISA).
#include "attention_backward_cpu.h"
#include "attention_forward_cpu.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
constexpr AttentionKernels attention_kernels = {
    kernel<AttentionForwardLoop<T>, AttentionForward>,
    kernel<AttentionBackwardLoop<T>, AttentionBackward>};

const AttentionKernels* attention(int dtype_bytes) {
  return dtype_bytes == 8 ? &attention_kernels<double> : &attention_kernels<float>;
}

}  // namespace fastrnn::FASTRNN_ISA
