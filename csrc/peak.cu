// What a step of a persistent schedule cannot be faster than: barriers and nothing else.
#include "device.h"
#include "gpu.h"

namespace fastrnn {

namespace {

using namespace cuda;

constexpr int threads = 128;

__global__ void cluster_barriers(int rounds) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  for (int i = 0; i < rounds; ++i) {
    cluster_arrive();
    cluster_wait();
  }
#endif
}

__global__ void reset_flag(unsigned* flag) { *flag = 0; }

__global__ void grid_barriers(unsigned* flag, unsigned blocks, int rounds) {
  for (int i = 1; i <= rounds; ++i) {
    __syncthreads();
    if (threadIdx.x == 0) {
      add_release(flag, 1);
      wait_at_least(flag, i * blocks);
    }
    __syncthreads();
  }
}

}  // namespace

int device_barriers(unsigned* flag, int cluster, int blocks, int rounds, void* stream) {
  if (cluster > 0) {
    const Grid grid{unsigned(blocks), 1, threads, 0, cluster};
    return launch(cluster_barriers, grid, stream, rounds);
  }
  const int error = launch(reset_flag, Grid{1, 1, 1}, stream, flag);
  if (error) return error;
  const Grid grid{unsigned(blocks), 1, threads, 0, 1, true};
  return launch(grid_barriers, grid, stream, flag, unsigned(blocks), rounds);
}

}  // namespace fastrnn
