#ifdef FASTRNN_CUDA
#include "recurrence_device.h"

#include "device.h"

namespace fastrnn::cuda {

using torch::headeronly::ScalarType;

Dtype dtype_of(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  if (type == ScalarType::Float) return Dtype::float32;
  if (type == ScalarType::Double) return Dtype::float64;
  if (type == ScalarType::Half) return Dtype::float16;
  check(type == ScalarType::BFloat16, "the CUDA kernels take floating-point tensors, got ", type);
  return Dtype::bfloat16;
}

void barriers(const Tensor& space, std::int64_t cluster, std::int64_t rounds) {
  constexpr Checks check{"cuda_barriers"};
  check(space.numel() > 0 && space.scalar_type() == ScalarType::Int,
        "space must be int32 [1], got ", space);
  check(cluster >= 0 && cluster <= 16 && rounds > 0 && rounds < 1 << 20,
        "cluster must be in [0, 16] and rounds in (0, 2^20), got ", cluster, " and ", rounds);
  const Current current = cuda::current(space);
  const Device& device = current.device;
  auto* const flag = static_cast<unsigned*>(space.mutable_data_ptr());
  const int blocks =
      cluster > 0 ? device.offer.at_once(int(cluster)) * int(cluster) : device.offer.processors;
  const int error = device_barriers(flag, int(cluster), blocks, int(rounds), device.stream);
  if (error) check(false, "the kernel could not be launched: ", device.error_text(error));
}

}  // namespace fastrnn::cuda
#endif
