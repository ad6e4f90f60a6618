#include <cuda_runtime.h>

#include "device.h"

namespace fastrnn {
namespace {

__global__ void empty_kernel() {}

// With a multiprocessor for each block, as those of the persistent kernels have.
void count_clusters(DeviceFacts* facts) {
  const int shared = facts->shared_memory_per_block;
  const void* const entry = reinterpret_cast<const void*>(empty_kernel);
  cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  cudaFuncSetAttribute(entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  unsigned size = 1;
  for (int& count : facts->clusters) {
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {size *= 2, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(size);
    config.blockDim = dim3(256);
    config.dynamicSmemBytes = std::size_t(shared);
    config.attrs = &attribute, config.numAttrs = 1;
    if (cudaOccupancyMaxActiveClusters(&count, entry, &config) != cudaSuccess) count = 0;
  }
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
  // Asking for the kernel loads its code; unlike a launch it is also allowed inside a graph
  // capture.
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, empty_kernel);
  facts->has_code = error == cudaSuccess;
  // Both mean the same: no code for this device among what was compiled in.
  const bool no_code =
      error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction;
  if (facts->has_code && facts->capability_major >= 9) count_clusters(facts);
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

// Not cudaErrorInvalidValue: an argument is wrong then, and who calls should hear of it.
bool device_refuses(int error) {
  switch (error) {
    case cudaErrorInvalidConfiguration:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorCooperativeLaunchTooLarge:
    case cudaErrorInvalidClusterSize:
    case cudaErrorNotSupported:
    case cudaErrorNotPermitted:
      return true;
    default:
      return false;
  }
}

const char* device_error_text(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace fastrnn
