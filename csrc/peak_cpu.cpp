// The floor's yardsticks: how many multiply-adds a second this processor does, and how fast it
// reads memory, when nothing else limits it. Built once per instruction set (FASTRNN_ISA).
#include "gemm_cpu.h"
#include "kernels_cpu.h"

namespace fastrnn::FASTRNN_ISA {

// Each thread multiplies a block of rows with one panel that stays in the first-level cache.
double multiply_adds(const Team& team, std::int64_t rounds) {
  constexpr int NV = 2, rows = tile_rows<NV>;
  constexpr Index k = 128;
  alignas(64) float a[rows * k], panel[k * NV * width<float>], tile[rows * NV * width<float>];
  for (float& value : a) value = 1.f;
  for (float& value : panel) value = 1.f;
  for (float& value : tile) value = 0.f;
  team.wait();
  for (std::int64_t round = 0; round < rounds; ++round) {
    micro_kernel<float, rows, NV, NV>(a, k, 1, panel, k, tile, true);
    asm volatile("" : : "r"(tile) : "memory");  // someone may read it: not to be optimised away
  }
  team.wait();
  return double(rounds) * k * rows * NV * width<float>;
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
