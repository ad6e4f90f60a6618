#include "checks.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

namespace fastrnn {

std::string text(const Shape& shape) {
  std::string result = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    result += (i ? ", " : "") + std::to_string(shape[i]);
  return result + "]";
}

Shape shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

Tensor Checks::tensor(const char* name, const Tensor& tensor, const Shape& shape,
                      const Tensor& like) const {
  const Checks& check = *this;
  const auto sizes = tensor.sizes();
  check(std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()), name, " must be ",
        shape, ", got ", tensor);
  check(tensor.scalar_type() == like.scalar_type(), name, " must have the input's dtype");
  check(tensor.device() == like.device(), name, " must be on the input's device");
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

void Checks::kernel_dtype(const Tensor& tensor) const {
  using torch::headeronly::ScalarType;
  (*this)(tensor.scalar_type() == ScalarType::Float || tensor.scalar_type() == ScalarType::Double,
          "the compiled kernels take float32 and float64");
}

}  // namespace fastrnn
