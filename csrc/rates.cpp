// Operators that measure the machine: what benchmarks/ hold a time against.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <chrono>

#include "checks.h"
#include "dispatch.h"

namespace fastrnn {

namespace {

// Seconds that all threads together take for body(team).
template <class Body>
double timed(const Body& body) {
  using Clock = std::chrono::steady_clock;
  struct Call {
    const Body& body;
    std::chrono::duration<double> seconds{};
  } call{body};
  Team::run(
      most_threads(),
      [](const Team& team, void* p) {
        Call& c = *static_cast<Call*>(p);
        team.wait();
        const auto begin = Clock::now();
        c.body(team);
        if (team.rank == 0) c.seconds = Clock::now() - begin;
      },
      &call);
  return call.seconds.count();
}

// GFLOP/s of all threads together in products of bfloat16 (2 bytes) or float32 (4), a multiply-add
// counted as two.
double cpu_peak(std::int64_t bytes) {
  if (bytes != 2 && bytes != 4)
    throw std::runtime_error("cpu_peak: bytes must be 2 or 4, got " + std::to_string(bytes));
  double flops = 0;
  const double seconds = timed([&](const Team& team) {
    const double done = 2 * instruction_set().multiply_adds(team, 20000, int(bytes)) * team.size;
    if (team.rank == 0) flops = done;
  });
  return flops / seconds * 1e-9;
}

// GB/s at which all threads together read a float32 tensor again and again: of whatever level of
// memory holds it.
double cpu_bandwidth(const Tensor& memory) {
  if (memory.scalar_type() != torch::headeronly::ScalarType::Float || !memory.is_contiguous() ||
      memory.numel() < 1024)
    throw std::runtime_error("cpu_bandwidth: memory must be float32, contiguous, of 1024 or more");
  const auto* data = static_cast<const float*>(memory.data_ptr());
  const std::int64_t count = memory.numel();
  const std::int64_t rounds = std::max<std::int64_t>(3, (std::int64_t(1) << 24) / count);
  const double seconds =
      timed([&](const Team& team) { instruction_set().read_memory(team, data, count, rounds); });
  return 4e-9 * double(count) * double(rounds) / seconds;
}

// Microseconds that a barrier of all threads takes.
double cpu_barrier() {
  constexpr int rounds = 10000;
  return timed([](const Team& team) {
           for (int round = 0; round < rounds; ++round) team.wait();
         }) *
         1e6 / rounds;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) { m.impl("cpu_bandwidth", TORCH_BOX(&cpu_bandwidth)); }

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_peak", TORCH_BOX(&cpu_peak));
  m.impl("cpu_barrier", TORCH_BOX(&cpu_barrier));
}

}  // namespace fastrnn
