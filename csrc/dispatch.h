// Choosing the instruction set, and running a kernel of it on a team of threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels_cpu.h"
#include "quota.h"

namespace fastrnn {

using torch::stable::Tensor;

struct InstructionSet {
  const char* name;
  bool supported;
  const CellKernels* (*kernels)(const char* cell, int dtype_bytes);
  const LayerKernels* (*row_kernels)(const char* cell, int dtype_bytes);
  const Kernel<CrossEntropy>* (*cross_entropy)(int dtype_bytes);
  const AttentionKernels* (*attention)(int dtype_bytes);
  const Kernel<Dropout>* (*dropout)(int dtype_bytes);
  double (*multiply_adds)(const Team& team, std::int64_t rounds, int dtype_bytes);
  float (*read_memory)(const Team& team, const float* data, std::int64_t count,
                       std::int64_t rounds);
};

// The widest set this processor has, or the one FASTRNN_CPU names.
const InstructionSet& instruction_set();

// Scratch memory of the calling thread, kept between calls: glibc would hand buffers of this size
// back to the system each time and page them in again. Only what is larger than 256 MiB is
// returned.
class Scratch {
 public:
  explicit Scratch(std::int64_t bytes);
  ~Scratch();
  char* data() const;

 private:
  const std::int64_t bytes_;
};

// Lets memory that is about to be written come from the system in large pages: one fault instead of
// 512 where an allocator gives new memory every time, as glibc does with large results by default.
void ask_for_large_pages(const Tensor& result);

// Multiply-adds that a thread must have between two barriers to save more than it costs.
constexpr std::int64_t threaded_work = 1 << 13;

template <class Arguments>
struct Call {
  const Kernel<Arguments>& kernel;
  const Arguments& arguments;
  char* workspace;

  static void on(const Team& team, void* call) {
    const Call& c = *static_cast<Call*>(call);
    c.kernel.run(team, c.arguments, c.workspace);
  }
};

template <class Arguments>
void run(const Kernel<Arguments>& kernel, const Arguments& arguments, char* workspace,
         int threads) {
  Call<Arguments> call{kernel, arguments, workspace};
  Team::run(threads, call.on, &call);
}

// Threads that a kernel may have.
inline int most_threads() {
  return std::min(int(torch::stable::get_num_threads()), processors_allowed());
}

// Threads that `work` multiply-adds between two barriers keep busy.
inline int useful_threads(std::int64_t work) {
  const std::int64_t useful = work / threaded_work;
  return int(std::clamp<std::int64_t>(useful, 1, most_threads()));
}

// `work`: multiply-adds between two barriers.
template <class Arguments>
void run(const Kernel<Arguments>& kernel, const Arguments& arguments, std::int64_t work) {
  const int threads = useful_threads(work);
  const Scratch scratch(kernel.workspace(arguments, threads));
  run(kernel, arguments, scratch.data(), threads);
}

// Several at once, each on its share of the threads.
template <class Arguments>
void run_each(const Kernel<Arguments>& kernel, const std::vector<Arguments>& each, int threads) {
  const int count = int(each.size()), share = (threads + count - 1) / count;
  std::vector<Call<Arguments>> calls;
  std::vector<void*> pointers;
  std::int64_t bytes = 0;
  for (const Arguments& arguments : each) bytes += kernel.workspace(arguments, share);
  const Scratch scratch(bytes);
  for (const Arguments& arguments : each) {
    bytes -= kernel.workspace(arguments, share);
    calls.push_back({kernel, arguments, scratch.data() + bytes});
  }
  for (Call<Arguments>& call : calls) pointers.push_back(&call);
  Team::run_each(threads, Call<Arguments>::on, pointers.data(), count);
}

}  // namespace fastrnn
