#include <cuda_runtime.h>

#include "device.h"

namespace fastrnn {
namespace {

__global__ void empty_kernel() {}

// Runs the empty kernel on a stream of its own, so that nothing else on the device is waited for.
cudaError_t run_empty_kernel() {
  cudaStream_t stream;
  cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error != cudaSuccess) return error;
  error = cudaLaunchKernel(reinterpret_cast<const void*>(empty_kernel), dim3(1), dim3(1), nullptr,
                           0, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  cudaGetLastError();  // a refused launch must not be found by the next caller
  const cudaError_t destroyed = cudaStreamDestroy(stream);
  return error != cudaSuccess ? error : destroyed;
}

cudaError_t probe_current(int device, DeviceFacts* facts) {
  struct {
    cudaDeviceAttr attribute;
    int* value;
  } const wanted[] = {
      {cudaDevAttrComputeCapabilityMajor, &facts->capability_major},
      {cudaDevAttrComputeCapabilityMinor, &facts->capability_minor},
      {cudaDevAttrMultiProcessorCount, &facts->multiprocessors},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, &facts->shared_memory_per_block},
  };
  for (const auto& entry : wanted) {
    const cudaError_t error = cudaDeviceGetAttribute(entry.value, entry.attribute, device);
    if (error != cudaSuccess) return error;
  }
  const cudaError_t error = run_empty_kernel();
  facts->has_code = error == cudaSuccess;
  // Both mean the same: no code for this device among what was compiled in.
  const bool no_code =
      error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction;
  return no_code ? cudaSuccess : error;
}

}  // namespace

int device_probe(int device, DeviceFacts* facts) {
  int previous = 0;
  cudaError_t error = cudaGetDevice(&previous);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  if (error == cudaSuccess) {
    error = probe_current(device, facts);
    const cudaError_t restored = cudaSetDevice(previous);
    if (error == cudaSuccess) error = restored;
  }
  cudaGetLastError();  // errors are returned, not left behind for the next caller
  return error;
}

const char* device_error_text(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace fastrnn
