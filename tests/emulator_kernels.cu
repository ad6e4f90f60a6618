// Small kernels that the emulator itself is tested with: right ones, whose barriers the tests take
// out one by one, and wrong ones.
#include "../csrc/gpu.h"
#include "../csrc/rough.h"

namespace fastrnn::cuda {
namespace {

__global__ void reverse_block(const float* in, float* out) {
  FASTRNN_SHARED(float, values);
  const unsigned i = threadIdx.x, n = blockDim.x;
  values[i] = in[blockIdx.x * n + i];
  __syncthreads();
  out[blockIdx.x * n + i] = values[n - 1 - i];
}

__global__ void reverse_warp(const float* in, float* out) {
  FASTRNN_SHARED(float, values);
  const unsigned i = threadIdx.x;
  values[i] = in[i];
  __syncwarp();
  out[i] = values[i ^ 31];
}

// The next block's values, through distributed shared memory.
__global__ void rotate_cluster(const float* in, float* out, unsigned blocks) {
  FASTRNN_SHARED(float, values);
  const unsigned i = threadIdx.x, n = blockDim.x;
  values[i] = in[blockIdx.x * n + i];
  cluster_arrive();
  cluster_wait();
  out[blockIdx.x * n + i] = cluster_peer(values, (cluster_rank() + 1) % blocks)[i];
  cluster_arrive();
  cluster_wait();
}

// Every block writes, then reads what the block after it wrote.
__global__ void rotate_grid(const float* in, float* scratch, float* out, unsigned* flag) {
  const unsigned i = threadIdx.x, n = blockDim.x, next = (blockIdx.x + 1) % gridDim.x;
  scratch[blockIdx.x * n + i] = in[blockIdx.x * n + i];
  __syncthreads();
  if (i == 0) {
    add_release(flag, 1);
    wait_at_least(flag, gridDim.x);
  }
  __syncthreads();
  out[blockIdx.x * n + i] = scratch[next * n + i];
}

__global__ void sum_warp(const float* in, float* out) {
  float value = in[threadIdx.x];
  for (unsigned mask = 16; mask; mask /= 2) value += shuffle_xor(value, mask);
  out[threadIdx.x] = value;
}

// a [16, 16] and b [8, 16] of T, out [16, 8].
template <class T>
__global__ void multiply(const std::uint32_t* a, const std::uint32_t* b, float* out) {
  const unsigned row = threadIdx.x / 4, pair = threadIdx.x % 4;
  const std::uint32_t left[4] = {a[row * 8 + pair], a[(row + 8) * 8 + pair], a[row * 8 + pair + 4],
                                 a[(row + 8) * 8 + pair + 4]};
  const std::uint32_t right[2] = {b[row * 8 + pair], b[row * 8 + pair + 4]};
  float sums[4] = {};
  mma<T>(sums, left, right);
  for (int i = 0; i < 4; ++i) out[(row + i / 2 * 8) * 8 + pair * 2 + i % 2] = sums[i];
}

enum Mistake {
  past_the_end,
  past_shared,
  unwritten,
  two_writers,
  ended_peer,
  no_flag,
  odd_pair,
  odd_copy,
  odd_matrix,
  odd_eight
};

struct alignas(8) Pair {
  float values[2];
};

struct alignas(16) Eight {
  float values[8];
};

__global__ void wrong(int mistake, float* out, unsigned* flag) {
  FASTRNN_SHARED(float, values);
  const unsigned i = threadIdx.x, n = blockDim.x;
  if (mistake == past_the_end) out[i + 1] = 0;
  if (mistake == past_shared) values[i + 1] = 0;
  if (mistake == unwritten) out[i] = values[i];
  if (mistake == two_writers) out[i / 2] = float(i);
  if (mistake == ended_peer) {
    values[i] = float(i);
    cluster_arrive();
    cluster_wait();
    if (cluster_rank() == 0)  // the other block may be gone by now
      out[i] = cluster_peer(values, 1)[i];
  }
  if (mistake == no_flag) wait_at_least(flag, n + 1);
  if (mistake == odd_pair && i == 0) *reinterpret_cast<Pair*>(out + 1) = Pair{};
  if (mistake == odd_copy) copy_async(values, out + 1, false);
  if (mistake == odd_eight && i == 0) out[0] = at_once<const Eight>(out + 1).values[7];
  if (mistake == odd_matrix) {
    std::uint32_t matrices[4];
    load_matrices<false>(matrices, values + 1);
  }
}

}  // namespace

extern "C" {
int test_reverse_block(const float* in, float* out, int blocks, int threads) {
  return launch(reverse_block, {unsigned(blocks), 1, threads, threads * 4}, nullptr, in, out);
}
int test_reverse_warp(const float* in, float* out) {
  return launch(reverse_warp, {1, 1, 64, 64 * 4}, nullptr, in, out);
}
int test_rotate_cluster(const float* in, float* out, int blocks, int threads) {
  return launch(rotate_cluster, {unsigned(blocks), 1, threads, threads * 4, blocks}, nullptr, in,
                out, blocks);
}
int test_rotate_grid(const float* in, float* scratch, float* out, unsigned* flag, int blocks,
                     int threads) {
  return launch(rotate_grid, {unsigned(blocks), 1, threads, 0, 1, true}, nullptr, in, scratch, out,
                flag);
}
int test_sum_warp(const float* in, float* out) {
  return launch(sum_warp, {1, 1, 32}, nullptr, in, out);
}
int test_multiply(int half, const std::uint32_t* a, const std::uint32_t* b, float* out) {
  return launch(half ? multiply<Half> : multiply<BFloat16>, {1, 1, 32}, nullptr, a, b, out);
}
int test_wrong(int mistake, float* out, unsigned* flag, int threads, std::int64_t shared) {
  return launch(wrong, {2, 1, threads, shared, 2}, nullptr, mistake, out, flag);
}
int test_rough(const float* in, float* sigmoids, float* tanhs, int count) {
  for (int i = 0; i < count; ++i) {
    sigmoids[i] = plain(sigmoid(Rough(in[i])));
    tanhs[i] = plain(tanh(Rough(in[i])));
  }
  return 0;
}
int test_narrow(int half, const float* in, std::uint16_t* out, int count) {
  for (int i = 0; i < count; ++i) {
    if (half)
      narrow(in[i], reinterpret_cast<Half*>(out) + i);
    else
      narrow(in[i], reinterpret_cast<BFloat16*>(out) + i);
  }
  return 0;
}
int test_widen(int half, const std::uint16_t* in, float* out, int count) {
  for (int i = 0; i < count; ++i) out[i] = half ? widen(Half{in[i]}) : widen(BFloat16{in[i]});
  return 0;
}
}

}  // namespace fastrnn::cuda
