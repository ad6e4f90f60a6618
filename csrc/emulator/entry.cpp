// What the tests call.
#include <string>
#include <vector>

#include "../kernels_cuda.h"
#include "machine.h"
#include "memory.h"
#include "sites.h"

using fastrnn::cuda::Dtype;

extern "C" {

void* emulator_allocate(std::size_t bytes, std::size_t misalign) {
  return emulator::allocate(bytes, misalign);
}
void emulator_release() {
  emulator::release_all();
  emulator::forget_sites();
}
void emulator_seed(unsigned seed) { emulator::set_seed(seed); }
const char* emulator_report() { return emulator::last_report().c_str(); }

int emulator_sites() { return int(emulator::sites().size()); }
const char* emulator_site(int i) { return emulator::sites()[std::size_t(i)].c_str(); }
void emulator_remove(const char* site) { emulator::remove_site(site); }

const void* emulator_step_kernels(const char* cell, int dtype) {
  return fastrnn::cuda::step_kernels(cell, Dtype(dtype));
}
const void* emulator_norm_kernels(const char* cell, int dtype) {
  return fastrnn::cuda::norm_kernels(cell, Dtype(dtype));
}
const void* emulator_cluster_kernels(const char* cell, int dtype) {
  return fastrnn::cuda::cluster_kernels(cell, Dtype(dtype));
}
const void* emulator_grid_kernels(const char* cell, int dtype) {
  return fastrnn::cuda::grid_kernels(cell, Dtype(dtype));
}
const void* emulator_stack_kernels(const char* cell, int dtype) {
  return fastrnn::cuda::stack_kernels(cell, Dtype(dtype));
}
int emulator_attention_forward(int dtype, const void* arguments, std::int64_t shared_limit) {
  const auto& a = *static_cast<const fastrnn::AttentionForward*>(arguments);
  return fastrnn::cuda::attention_forward(Dtype(dtype), a, shared_limit, nullptr);
}
int emulator_attention_backward(int dtype, const void* arguments, std::int64_t shared_limit) {
  const auto& a = *static_cast<const fastrnn::cuda::AttentionGradients*>(arguments);
  return fastrnn::cuda::attention_backward(Dtype(dtype), a, shared_limit, nullptr);
}
}
