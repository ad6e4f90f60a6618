// Dropout with masks that are a function of a seed. Built once per instruction set (FASTRNN_ISA).
#include "packing_cpu.h"
#include "philox_cpu.h"
#include "workspace.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
class DropoutLoop {
  using V = Vec<Value<T>>;
  static constexpr Index quads = 16, block = 4 * quads;

 public:
  DropoutLoop(const Dropout& arguments, char*, int) : s_(arguments) {}

  Index bytes() const { return 0; }

  void run(const Team& team) {
    const Index blocks = ceil_div(s_.count, block);
    for (Index b = team.begin(blocks); b < team.end(blocks); ++b) multiply(b);
  }

 private:
  // Number i takes word i % 4 of the counter (i / 4, 0, 0), its first part 64 bits wide.
  void multiply(Index b) const {
    alignas(64) std::uint32_t words[block];
    alignas(64) Value<T> shares[block];
    const std::uint64_t quad = std::uint64_t(b) * quads;
    philox<quads>(s_.seed, std::uint32_t(quad), std::uint32_t(quad >> 32), 0, 0, words);
    const Value<T> kept = Value<T>(s_.scale);
    for (Index i = 0; i < block; ++i) shares[i] = words[i] <= s_.kept_to ? kept : Value<T>(0);
    const T* const from = static_cast<const T*>(s_.input) + b * block;
    T* const to = static_cast<T*>(s_.output) + b * block;
    const Index count = smaller(block, s_.count - b * block);
    for (Index i = 0; i < count; i += V::width)
      (V::load(from + i, count - i) * V::load(shares + i)).store(to + i, count - i);
  }

  const Dropout& s_;
};

template <class T>
constexpr Kernel<Dropout> dropout_kernel = kernel<DropoutLoop<T>, Dropout>;

const Kernel<Dropout>* dropout(int dtype_bytes) {
  if (dtype_bytes == 2) return &dropout_kernel<Bf16>;
  return dtype_bytes == 4 ? &dropout_kernel<float> : &dropout_kernel<double>;
}

}  // namespace fastrnn::FASTRNN_ISA
