// The floor's yardsticks: how many multiply-adds a second this processor does, and how fast it
// reads memory, when nothing else limits it. Built once per instruction set (FASTRNN_ISA).
#include "kernels_cpu.h"
#include "micro_kernel_cpu.h"

namespace fastrnn::FASTRNN_ISA {

// Each thread multiplies a block of rows with one panel that stays in the first-level cache. T:
// what products multiply.
template <class T>
double multiplied(const Team& team, std::int64_t rounds) {
  constexpr int NV = 2, rows = tile_rows<NV>;
  constexpr Index k = 128;
  alignas(64) T a[rows * k]{}, panel[k * NV * width<T>]{};
  alignas(64) Value<T> tile[rows * NV * width<T>]{};
  team.wait();
  for (std::int64_t round = 0; round < rounds; ++round) {
    micro_kernel<T, rows, NV, NV>(a, k, depth<T>, panel, k, tile, true);
    asm volatile("" : : "r"(tile) : "memory");  // someone may read it: not to be optimised away
  }
  team.wait();
  return double(rounds) * k * rows * NV * width<T>;
}

double multiply_adds(const Team& team, std::int64_t rounds, int dtype_bytes) {
  return dtype_bytes == 2 ? multiplied<Operand<Bf16>>(team, rounds)
                          : multiplied<float>(team, rounds);
}

// Each thread sums its share of the floats, the same one in every round.
float read_memory(const Team& team, const float* data, std::int64_t count, std::int64_t rounds) {
  constexpr int at_once = 8;  // sums that do not wait for each other
  using V = Vec<float>;
  V sums[at_once];
  for (V& sum : sums) sum = V(0.f);
  const Index begin = team.begin(count / (at_once * V::width)),
              end = team.end(count / (at_once * V::width));
  team.wait();
  for (std::int64_t round = 0; round < rounds; ++round) {
    const float* p = data + begin * at_once * V::width;
    for (Index i = begin; i < end; ++i)
      for (V& sum : sums) {
        sum = V(sum.v + V::load(p).v);
        p += V::width;
      }
    asm volatile("" : : "r"(sums) : "memory");
  }
  team.wait();
  return sums[0].v[0];
}

}  // namespace fastrnn::FASTRNN_ISA
