#include "checks.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

namespace fastrnn {

std::string text(const Shape& shape) {
  std::string result = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    result += (i ? ", " : "") + std::to_string(shape[i]);
  return result + "]";
}

std::string written(const torch::stable::Device& device) {
  using torch::headeronly::DeviceType;
  const DeviceType type = device.type();
  std::ostringstream words;
  if (type == DeviceType::CPU)
    words << "cpu";
  else if (type == DeviceType::CUDA)
    words << "cuda";
  else
    words << "device type " << int(type);
  if (device.has_index()) words << ":" << int(device.index());
  return words.str();
}

std::string written(const Whole& whole) {
  std::ostringstream words;
  words << whole.tensor.scalar_type() << " " << written(whole.tensor) << " on "
        << written(whole.tensor.device());
  return words.str();
}

Shape shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

namespace {

// Of a contiguous tensor.
Shape strides_of(torch::headeronly::IntHeaderOnlyArrayRef shape) {
  Shape strides(shape.size());
  std::int64_t stride = 1;
  for (std::size_t i = shape.size(); i-- > 0; stride *= std::max<std::int64_t>(shape[i], 1))
    strides[i] = stride;
  return strides;
}

}  // namespace

Tensor new_tensor(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape) {
  return new_tensor(like, shape, like.scalar_type());
}

Tensor new_tensor(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape,
                  torch::headeronly::ScalarType dtype) {
  return new_strided(like, shape, strides_of(shape), dtype);
}

Tensor new_strided(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape,
                   torch::headeronly::IntHeaderOnlyArrayRef strides,
                   torch::headeronly::ScalarType dtype) {
  std::int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(std::int64_t(shape.size()), shape.data(),
                                                         strides.data(), std::int32_t(dtype),
                                                         device_type, device_index, &made));
  return Tensor(made);
}

Tensor copied(const Tensor& tensor) {
  const Tensor made = new_tensor(tensor, tensor.sizes());
  if (const std::size_t bytes = tensor.numel() * tensor.element_size())
    std::memcpy(made.mutable_data_ptr(), tensor.const_data_ptr(), bytes);
  return made;
}

void Checks::held(const char* name, const Tensor& tensor) const {
  std::int64_t bytes;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  std::int64_t end = tensor.numel() ? tensor.storage_offset() + 1 : 0;
  for (std::size_t i = 0; i < sizes.size() && end > 0; ++i) end += (sizes[i] - 1) * strides[i];
  const std::int64_t needed = end * std::int64_t(tensor.element_size());
  (*this)(bytes >= needed, name, " must have a storage of ", needed, " bytes or more, got ", bytes);
}

Tensor Checks::contiguous(const char* name, const Tensor& tensor) const {
  held(name, tensor);
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

Tensor Checks::in_shape(const char* name, const Tensor& tensor, const Shape& shape) const {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;
  (*this)(tensor.numel() == count && tensor.is_contiguous(), name,
          " must be contiguous with the elements of ", shape, ", got ", tensor);
  const Shape strides = strides_of(shape);
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(
      tensor.get(), std::int64_t(shape.size()), shape.data(), strides.data(), 0, &made));
  return Tensor(made);
}

Tensor Checks::tensor(const char* name, const Tensor& tensor, const Shape& shape,
                      const Tensor& like) const {
  const Checks& check = *this;
  const auto sizes = tensor.sizes();
  check(std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()), name, " must be ",
        shape, ", got ", tensor);
  check(tensor.scalar_type() == like.scalar_type(), name, " must have the input's dtype ",
        like.scalar_type(), ", got ", tensor.scalar_type());
  check(tensor.device() == like.device(), name, " must be on the input's device ", like.device(),
        ", got ", tensor.device());
  return contiguous(name, tensor);
}

void Checks::kernel_dtype(const Tensor& tensor, bool bfloat16) const {
  using torch::headeronly::ScalarType;
  const ScalarType dtype = tensor.scalar_type();
  (*this)(dtype == ScalarType::Float || dtype == ScalarType::Double ||
              (bfloat16 && dtype == ScalarType::BFloat16),
          "the compiled kernels take float32", bfloat16 ? ", float64 and bfloat16" : " and float64",
          ", got ", dtype);
}

}  // namespace fastrnn
