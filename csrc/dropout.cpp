// The operator fastrnn::dropout on CPU tensors.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>

#include "checks.h"
#include "dispatch.h"

namespace fastrnn {

namespace {

constexpr Checks check{"dropout"};

Tensor dropout(const Tensor& input, const Tensor& seed, double p) {
  check.kernel_dtype(input, true);
  check(seed.numel() == 1 && seed.scalar_type() == torch::headeronly::ScalarType::Long &&
            seed.device().is_cpu(),
        "seed must be one CPU int64, got ", Whole{seed});
  check(p >= 0 && p < 1, "p must be in [0, 1), got ", p);
  check.held("seed", seed);
  const Tensor from = check.contiguous("input", input);
  const Tensor made = new_tensor(from, from.sizes());
  ask_for_large_pages(made);
  const double below = std::max(1., std::nearbyint((1 - p) * 0x1p32));
  const Dropout arguments{from.numel(),
                          from.const_data_ptr(),
                          made.mutable_data_ptr(),
                          std::uint64_t(*seed.const_data_ptr<std::int64_t>()),
                          std::uint32_t(below - 1),
                          1 / (1 - p)};
  constexpr std::int64_t work_of_one = 4;  // a word costs as much as so many multiply-adds
  run(*instruction_set().dropout(int(from.element_size())), arguments,
      work_of_one * arguments.count);
  return made;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) { m.impl("dropout", TORCH_BOX(&dropout)); }

}  // namespace fastrnn
