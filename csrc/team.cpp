#include "team.h"

#include <unistd.h>

#include <atomic>
#include <thread>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastrnn {

struct Team::Barrier {
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<int> generation{0};
};

static inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// A step is microseconds long, so the wait spins; it yields in time for machines with fewer
// cores than threads.
void Team::wait_for_others() const {
  constexpr int spins = 2000;
  const int generation = barrier_->generation.load(std::memory_order_relaxed);
  if (barrier_->arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
    barrier_->arrived.store(0, std::memory_order_relaxed);
    barrier_->generation.store(generation + 1, std::memory_order_release);
    return;
  }
  for (int spin = 0; barrier_->generation.load(std::memory_order_acquire) == generation; ++spin) {
    if (spin < spins)
      pause();
    else
      std::this_thread::yield();
  }
}

void Team::run(int threads, void (*body)(const Team&, void*), void* argument) {
  Barrier barrier;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Team team(omp_get_thread_num(), omp_get_num_threads(), &barrier);
    body(team, argument);
  }
#else
  body(Team(0, 1, &barrier), argument);
#endif
}

void Team::run_both(int threads, void (*body)(const Team&, void*), void* first, void* second) {
  struct Call {
    void (*body)(const Team&, void*);
    void *first, *second;
    Barrier barriers[2];
  } call{body, first, second, {}};
  run(
      threads,
      [](const Team& all, void* p) {
        Call& c = *static_cast<Call*>(p);
        const int half = all.size / 2, rank = all.rank - half;
        if (half == 0) c.body(all, c.first);
        if (rank < 0) c.body(Team(all.rank, half, &c.barriers[0]), c.first);
        if (rank >= 0) c.body(Team(rank, all.size - half, &c.barriers[1]), c.second);
      },
      &call);
}

std::int64_t near_bytes() {
  static const std::int64_t second_cache = [] {
    long bytes = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return bytes > 0 ? std::int64_t(bytes) : std::int64_t(1) << 20;  // 0, too, if it is not known
  }();
  return second_cache / 4 * 3;
}

}  // namespace fastrnn
