// An operator's argument checks; what fails throws one line: operator, argument, expected, got.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastrnn {

using torch::stable::Tensor;
using Shape = std::vector<std::int64_t>;

std::string text(const Shape& shape);
Shape shape_of(const Tensor& tensor);

// A tensor to be written with its dtype and device.
struct Whole {
  const Tensor& tensor;
};

// How a word of a message is written: a tensor by its shape. Only once a check has failed: making
// the text beforehand cost a call more than its own work.
template <class Word>
const Word& written(const Word& word) {
  return word;
}
inline std::string written(const Shape& shape) { return text(shape); }
inline std::string written(const Tensor& tensor) { return text(shape_of(tensor)); }
std::string written(const torch::stable::Device& device);
std::string written(const Whole& whole);

// Past torch's dispatcher, which takes 2 us for each: together as long as a small layer's step.
Tensor new_tensor(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape);
Tensor new_tensor(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape,
                  torch::headeronly::ScalarType dtype);
Tensor new_strided(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape,
                   torch::headeronly::IntHeaderOnlyArrayRef strides,
                   torch::headeronly::ScalarType dtype);
Tensor copied(const Tensor& tensor);  // a contiguous one in the host's memory

struct Checks {
  const char* op;  // begins every message

  // Throws unless `ok`.
  template <class... Words>
  void operator()(bool ok, const Words&... words) const {
    if (ok) return;
    std::ostringstream message;
    message << op << ": ";
    (message << ... << written(words));
    throw std::runtime_error(message.str());
  }

  // `tensor` contiguous, once its shape is `shape`, its dtype and device those of `like`.
  Tensor tensor(const char* name, const Tensor& tensor, const Shape& shape,
                const Tensor& like) const;

  // Throws unless the tensor's storage has its elements: it may have been freed or cut.
  void held(const char* name, const Tensor& tensor) const;

  // The same tensor contiguous, its storage checked.
  Tensor contiguous(const char* name, const Tensor& tensor) const;

  // The elements of a contiguous tensor, as many, in another shape.
  Tensor in_shape(const char* name, const Tensor& tensor, const Shape& shape) const;

  void kernel_dtype(const Tensor& tensor, bool bfloat16 = false) const;
};

}  // namespace fastrnn
