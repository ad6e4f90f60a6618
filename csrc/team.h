// The threads of one parallel region, and how they wait for one another.
#pragma once

#include <cstdint>

namespace fastrnn {

// How many steps a body has done, for another that runs at once with it and reads what it wrote.
class Progress {
 public:
  void reach(std::int64_t steps);
  void wait_for(std::int64_t steps) const;

 private:
  alignas(64) std::int64_t done_ = 0;
};

class Team {
 public:
  // Runs body(team, argument) on up to `threads` threads. `size` is what the region really has:
  // OpenMP may give fewer than asked for, one when already inside another region.
  static void run(int threads, void (*body)(const Team&, void*), void* argument);

  // body(team, argument) for `count` arguments at once, each on a team of its share of the threads;
  // one after the other, by one thread, in a region that has fewer threads than arguments.
  static void run_each(int threads, void (*body)(const Team&, void*), void* const* arguments,
                       int count);

  // Waits until every thread of the region is here.
  void wait() const {
    if (size > 1) wait_for_others();
  }

  // This thread's share of `count` items.
  std::int64_t begin(std::int64_t count) const { return count * rank / size; }
  std::int64_t end(std::int64_t count) const { return count * (rank + 1) / size; }

  // A team of this thread alone.
  Team alone() const { return Team(0, 1, nullptr); }

  const int rank, size;

 private:
  struct Barrier;
  Team(int rank, int size, Barrier* barrier) : rank(rank), size(size), barrier_(barrier) {}
  void wait_for_others() const;
  Barrier* const barrier_;
};

// What stays in a core's second cache beside the rest that a loop reads.
std::int64_t near_bytes();

}  // namespace fastrnn
