// csrc/gpu.h's launches and csrc/device.cu over a CUDA runtime that is not there: it has one device
// and keeps what a kernel is allowed. Says what is wrong, and how much.
#include <cstdio>

#include "../csrc/device.cu"
#include "../csrc/gpu.h"

#ifndef __CUDA_ARCH__  // the device has functions of these names, too
namespace {

constexpr int of_block = 232448, fixed = 1024;  // bytes a block can have; of the kernel's own
int allowed = (48 << 10) - fixed, most = of_block, wrong = 0;  // most: without the fixed, or not
bool wide = false;                                             // clusters of more than 8 blocks
void (*other)() = nullptr;  // another thread's turn, before a launch or once attributes are read
bool at_attributes = false;

void others_turn() {
  if (void (*const now)() = other) other = nullptr, now();
}

void expect(bool right, const char* what) {
  if (!right) std::printf("%s\n", what), ++wrong;
}

void kernel(int) {}
int launch(std::int64_t shared, int cluster = 1) {
  const fastrnn::cuda::Grid grid{unsigned(cluster), 1, 32, shared, cluster};
  return fastrnn::cuda::launch(kernel, grid, nullptr, 0);
}

}  // namespace

extern "C" {
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  *found = {};
  found->sharedSizeBytes = fixed, found->maxDynamicSharedSizeBytes = allowed;
  if (at_attributes) others_turn();
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) return wide = value, cudaSuccess;
  if (value > most) return cudaErrorInvalidValue;
  return allowed = value, cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void*, void**) {
  others_turn();
  if (int(config->dynamicSmemBytes) > allowed) return cudaErrorInvalidValue;
  const bool too_wide = config->numAttrs && config->attrs[0].val.clusterDim.x > 8 && !wide;
  return too_wide ? cudaErrorInvalidClusterSize : cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* count, const void*,
                                           const cudaLaunchConfig_t* config) {
  const unsigned size = config->attrs[0].val.clusterDim.x;
  if (config->dynamicSmemBytes != of_block || config->gridDim.x != size || (size > 8 && !wide))
    return cudaErrorInvalidValue;
  *count = int(6 * (16 / size) + 2 * (18 / size));
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? of_block
           : attribute == cudaDevAttrComputeCapabilityMajor     ? 9
                                                                : 0;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return ""; }
// What nvcc has a program call at its start.
void** __cudaRegisterFatBinary(void*) { return nullptr; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, uint3*, uint3*, dim3*,
                            dim3*, int*) {}
}

int main() {
  expect(launch(1 << 10) == 0 && allowed < 48 << 10, "a small launch asks for nothing");
  other = [] { expect(launch(64 << 10) == 0, "another thread's launch"); };
  expect(launch(200 << 10) == 0, "a smaller launch on another thread lowers what is allowed");
  // Another thread's launch of all there is, between this one's look at what is allowed and its
  // own.
  allowed = 48 << 10, at_attributes = true;
  other = [] { expect(launch(of_block) == 0, "another thread's launch of all there is"); };
  expect(launch(64 << 10) == 0 && allowed == of_block, "a smaller launch lowers what is allowed");
  at_attributes = false;
  // What is fixed may be what of_block is already without: then there is room, else CUDA says no.
  expect(launch(of_block) == 0, "a launch of the fixed bytes, too");
  expect(launch(of_block + 16) == cudaErrorInvalidValue, "a launch of more");
  allowed = 48 << 10, most = of_block - fixed;
  expect(launch(most) == 0 && allowed == most, "a launch of all there is");
  expect(fastrnn::device_refuses(launch(of_block)), "the fixed bytes are refused");
  expect(launch(0, 16) == 0, "a cluster of sixteen");
  expect(!fastrnn::device_refuses(cudaErrorInvalidValue), "a wrong argument is no refusal");
  for (const cudaError_t error : {cudaErrorCooperativeLaunchTooLarge, cudaErrorInvalidClusterSize})
    expect(fastrnn::device_refuses(error), "a refusal");
  fastrnn::DeviceFacts facts{};
  wide = false;
  expect(fastrnn::device_probe(0, &facts) == 0 && facts.has_code, "the probe");
  const int (&clusters)[4] = facts.clusters;
  expect(clusters[0] == 66 && clusters[1] == 32 && clusters[2] == 16 && clusters[3] == 8,
         "clusters that run at once");
  return wrong;
}
#endif
