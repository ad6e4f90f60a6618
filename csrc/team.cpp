#include "team.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "quota.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastrnn {

// Threads of all regions that run now, called by several threads of the process, and processors.
static std::atomic<int> running{0}, processors{1};
// A child has none of the regions that other threads of its parent were in.
[[maybe_unused]] static const int at_fork = pthread_atfork(nullptr, nullptr, [] { running = 0; });

struct Team::Barrier {
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<int> generation{0};
};

static inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");  // waits a little, as `yield` does on few processors only
#endif
}

// A step is microseconds long, so a wait spins before it yields; but where threads have no
// processor of their own, 16 on two, say, they went ten times as fast without.
template <class Done>
static void wait_until(const Done& done) {
  const int spins = running > processors ? 0 : 2000;
  for (int spin = 0; !done(); ++spin) {
    if (spin < spins)
      pause();
    else
      std::this_thread::yield();
  }
}

void Team::wait_for_others() const {
  const int generation = barrier_->generation.load(std::memory_order_relaxed);
  if (barrier_->arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
    barrier_->arrived.store(0, std::memory_order_relaxed);
    barrier_->generation.store(generation + 1, std::memory_order_release);
    return;
  }
  wait_until([&] { return barrier_->generation.load(std::memory_order_acquire) != generation; });
}

void Progress::reach(std::int64_t steps) { __atomic_store_n(&done_, steps, __ATOMIC_RELEASE); }

void Progress::wait_for(std::int64_t steps) const {
  wait_until([&] { return __atomic_load_n(&done_, __ATOMIC_ACQUIRE) >= steps; });
}

void Team::run(int threads, void (*body)(const Team&, void*), void* argument) {
  Barrier barrier;
#ifdef _OPENMP
  if (threads > 1) {
    processors = std::min(omp_get_num_procs(), processors_allowed());
    // A fork leaves a caller's other threads behind: GNU's library would wait for them for ever.
    static thread_local pid_t process = getpid();
    if (process != getpid()) threads = 1;
    // Beside other regions, only threads that find a processor: others would make them all wait.
    if (const int others = running) threads = std::clamp(processors - others, 1, threads);
  }
  running += threads;
  // All threads come and some go at once: a smaller region would end those threads for good, in
  // GNU's library, and the next one start others (pytorch issue 32008). But where a container's
  // limit is below, they would spin its processors' time away.
#pragma omp parallel if (threads > 1) \
    num_threads(std::min(omp_get_max_threads(), processors_allowed()))
  {
    const Team team(omp_get_thread_num(), std::min(threads, omp_get_num_threads()), &barrier);
    if (team.rank < team.size) body(team, argument);
  }
  running -= threads;
#else
  body(Team(0, 1, &barrier), argument);
#endif
}

void Team::run_each(int threads, void (*body)(const Team&, void*), void* const* arguments,
                    int count) {
  struct Call {
    void (*body)(const Team&, void*);
    void* const* arguments;
    int count;
    std::vector<Barrier> barriers;
  } call{body, arguments, count, std::vector<Barrier>(count)};
  run(
      threads,
      [](const Team& all, void* p) {
        Call& c = *static_cast<Call*>(p);
        if (all.size < c.count) {
          for (int i = 0; all.rank == 0 && i < c.count; ++i) c.body(all.alone(), c.arguments[i]);
          return;
        }
        const int i = (all.rank * c.count + c.count - 1) / all.size;
        const auto begin = [&](int i) { return all.size * i / c.count; };
        const Team part(all.rank - begin(i), begin(i + 1) - begin(i), &c.barriers[i]);
        c.body(part, c.arguments[i]);
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
