// What the kernels use of the machine, in one place: number types, launches, shared memory,
// barriers, and a wrapper for every PTX instruction. Their emulated twins are in emulator/gpu.h.
#pragma once

#include <cstdint>

#ifdef FASTRNN_EMULATOR
#include "emulator/gpu.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

// A block's dynamic shared memory.
#define FASTRNN_SHARED(T, name)                                \
  extern __shared__ __align__(128) unsigned char raw_##name[]; \
  T* const name = reinterpret_cast<T*>(raw_##name)

namespace fastrnn::cuda {

using Half = __half;
using BFloat16 = __nv_bfloat16;

__device__ __forceinline__ float widen(Half x) { return __half2float(x); }
__device__ __forceinline__ float widen(BFloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void narrow(float x, Half* to) { *to = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, BFloat16* to) { *to = __float2bfloat16_rn(x); }

// Neighbours that are read or written at once: a fault where they are not aligned as a whole.
template <class Whole, class T>
__device__ __forceinline__ Whole& at_once(T* first) {
  return *reinterpret_cast<Whole*>(first);
}

struct Grid {
  unsigned x, y;  // blocks
  int threads;    // of a block
  std::int64_t shared = 0;
  int cluster = 1;
  bool cooperative = false;
};

// Raises what a kernel's blocks may have to the device's limit, never less: one kernel serves
// layers of every size, and another thread's smaller one must not lower it before this launch.
// sharedSizeBytes may be the KB that sm_90 keeps for itself, which the limit is already without; if
// CUDA counts it all the same, a layer that needs this KB is refused, and runs by another schedule.
inline cudaError_t allow_shared(const void* kernel, std::int64_t bytes) {
  cudaFuncAttributes now;
  cudaError_t error = cudaFuncGetAttributes(&now, kernel);
  if (error != cudaSuccess || now.maxDynamicSharedSizeBytes >= bytes) return error;
  int device = 0, limit = 0;
  error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  const auto allow = [&](int most) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  };
  if (allow(limit) == cudaSuccess) return cudaSuccess;
  cudaGetLastError();
  const int left = limit - int(now.sharedSizeBytes);
  if (bytes > limit) return cudaErrorInvalidValue;
  return bytes > left ? cudaErrorLaunchOutOfResources : allow(left);
}

template <class... P, class... A>
int launch(void (*kernel)(P...), const Grid& grid, void* stream, A... arguments) {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.x, grid.y);
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = std::size_t(grid.shared);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  const void* const entry = reinterpret_cast<const void*>(kernel);
  cudaError_t error = grid.shared > 48 << 10 ? allow_shared(entry, grid.shared) : cudaSuccess;
  if (grid.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {unsigned(grid.cluster), 1, 1};
    if (grid.cluster > 8 && error == cudaSuccess)
      error = cudaFuncSetAttribute(entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  if (grid.cooperative) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, P(arguments)...);
  if (error != cudaSuccess) cudaGetLastError();  // returned, not left for the next caller
  return error;
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, unsigned mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}
template <class T>
__device__ __forceinline__ T shuffle(T value, int lane) {
  return __shfl_sync(0xFFFFFFFFu, value, lane);
}
// Bit i: what lane i says.
__device__ __forceinline__ unsigned ballot(bool value) { return __ballot_sync(0xFFFFFFFFu, value); }
// A barrier of the block's threads that also tells whether any of them says so.
__device__ __forceinline__ bool block_any(bool value) { return __syncthreads_or(value); }

// 2^x, to 2 units in the last place; 0 where that is below the normal numbers.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Makes x here, not where it is used: what it is made of need not be kept until then.
__device__ __forceinline__ void make_now(float& x) { asm volatile("" : "+f"(x)); }
__device__ __forceinline__ void make_now(double& x) { asm volatile("" : "+d"(x)); }
__device__ __forceinline__ void make_now(int& x) { asm volatile("" : "+r"(x)); }

// 1 / x, to a unit in the last place.
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two numbers in one register, `low` first in memory.
__device__ __forceinline__ std::uint32_t pair_of(float low, float high, Half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(pair);
}
__device__ __forceinline__ std::uint32_t pair_of(float low, float high, BFloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(pair);
}

// Four 8 x 8 matrices of 16-bit numbers from shared memory; lane 8 i + r names row r of matrix i,
// 16 bytes. Lane 4 * group + place ends with numbers 2 * place and 2 * place + 1 of row `group` of
// each, or (transposed) of column `group`.
template <bool Transposed>
__device__ __forceinline__ void load_matrices(std::uint32_t (&to)[4], const void* row) {
  const auto at = unsigned(__cvta_generic_to_shared(row));
  if constexpr (Transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}

// Begins to copy 8 or 16 aligned bytes from device to shared memory, or to write zeros there. They
// are there for the thread itself once it has waited for their group, for others after a barrier.
template <int Bytes = 16>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool zeros) {
  const auto at = unsigned(__cvta_generic_to_shared(to));
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from),
                 "r"(zeros ? 0 : 16)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(at), "l"(from),
                 "r"(zeros ? 0 : 8)
                 : "memory");
}
// The same for bytes that another warp of the block also copies: the second finds them in L1.
__device__ __forceinline__ void copy_cached(void* to, const void* from) {
  const auto at = unsigned(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}
// Ends a group of copies, and waits for all groups but the last `Left`.
__device__ __forceinline__ void end_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int Left>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

// The nearest number of TF32, ties away from zero.
__device__ __forceinline__ float to_tf32(float x) {
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

// d += a b with a: 16 x K by rows, b: K x 8 by columns, d: 16 x 8, each lane holding its fragments
// (PTX ISA, mma.m16n8k16 and mma.m16n8k8). K is 16 for T Half or BFloat16, 8 for float: TF32.
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const std::uint32_t (&a)[4],
                                    const std::uint32_t (&b)[2]) {
#define FASTRNN_MMA(shape, type)                                             \
  asm("mma.sync.aligned." shape ".row.col.f32." type "." type                \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (sizeof(T) == 4)
    FASTRNN_MMA("m16n8k8", "tf32");
  else if constexpr (__is_same(T, Half))
    FASTRNN_MMA("m16n8k16", "f16");
  else
    FASTRNN_MMA("m16n8k16", "bf16");
#undef FASTRNN_MMA
}

// Clusters: sm_90 and later; elsewhere their kernels are empty.
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// The same shared variable in another block of the cluster.
template <class T>
__device__ __forceinline__ T* cluster_peer(T* mine, unsigned rank) {
  T* peer;
  asm("mapa.u64 %0, %1, %2;" : "=l"(peer) : "l"(mine), "r"(rank));
  return peer;
}

// Together a barrier of the cluster's threads: what they did before arriving is seen after waiting.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Flags in device memory, seen by all blocks.
__device__ __forceinline__ void add_release(unsigned* flag, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
__device__ __forceinline__ void wait_at_least(const unsigned* flag, unsigned value) {
  unsigned now;
  do asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(flag) : "memory");
  while (int(now - value) < 0);
  // One acquire at the end, as each throws away what the processor has cached. Not a fence: that
  // would also wait for what this thread has written.
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(flag) : "memory");
}

}  // namespace fastrnn::cuda
#endif

namespace fastrnn::cuda {

// What a dtype is computed in.
template <class T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};
template <class T>
using Sum = typename SumOf<T>::type;

__host__ __device__ __forceinline__ float widen(float x) { return x; }
__host__ __device__ __forceinline__ double widen(double x) { return x; }
__host__ __device__ __forceinline__ void narrow(float x, float* to) { *to = x; }
__host__ __device__ __forceinline__ void narrow(double x, double* to) { *to = x; }

}  // namespace fastrnn::cuda
