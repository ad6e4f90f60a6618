// Threads, warps, blocks, clusters and grids on one CPU core: a fiber for every thread, run in a
// seeded order, and the clocks that tell which accesses are ordered.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

namespace emulator {

struct Dim {
  unsigned x, y, z;
  Dim(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  std::size_t count() const { return std::size_t(x) * y * z; }
};

// For every thread of the group, the last of its epochs whose accesses are known to be over.
using Clock = std::vector<std::uint32_t>;
using SharedClock = std::shared_ptr<const Clock>;

// A barrier hands every participant the joined knowledge of all who arrive.
struct Barrier {
  const char* name = "";
  unsigned participants = 0, arrived = 0, phase = 0;
  std::vector<SharedClock> clocks;                              // of this phase, without doubles
  std::vector<std::pair<std::uint32_t, std::uint32_t>> epochs;  // of this phase: thread, epoch
  SharedClock result;                                           // of the last phase
};

constexpr unsigned lanes = 32, slot_size = 64;

struct Warp {
  Barrier barrier;   // __syncwarp
  Barrier exchange;  // of registers: orders no memory
  alignas(16) unsigned char slots[2][lanes][slot_size];
};

struct Block;

// An asynchronous one, of 16 bytes, or zeros from null.
struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Thread {
  Dim index;
  unsigned lane = 0, number = 0;  // in its warp, in the group
  Block* block = nullptr;
  Warp* warp = nullptr;
  Fiber fiber;
  bool done = false;
  const Barrier* barrier = nullptr;  // it waits for the end of this phase of it
  unsigned phase = 0;
  const unsigned* flag = nullptr;  // or for this to be at least `least`
  unsigned least = 0;
  unsigned parity = 0;         // of the warp's exchanges
  unsigned cluster_phase = 0;  // it has arrived at
  bool met_cluster = false;    // has passed a cluster barrier
  unsigned votes = 0;          // of the block's it has taken part in
  std::vector<std::vector<Copy>> copies = std::vector<std::vector<Copy>>(1);  // groups; the last
                                                                              // is still open
  std::uint32_t epoch = 0;  // stamps its accesses; grows whenever it publishes them
  SharedClock clock;
};

struct Block {
  Dim index;
  unsigned rank = 0, cluster_size = 1;  // in and of the cluster
  Block* cluster = nullptr;             // its first block
  unsigned char* shared = nullptr;
  Barrier barrier;
  bool votes[3] = {};
  Barrier* cluster_barrier = nullptr;
  std::vector<Warp> warps;
  std::vector<Thread> threads;
  std::size_t live = 0;
};

struct Launch {
  Dim grid, block;
  std::size_t shared = 0;
  unsigned cluster = 1;
  bool cooperative = false;
};

constexpr int refused = 1;   // a launch the device would not take
constexpr int failed = 999;  // a mistake was found; last_report() has it

// Runs a kernel to its end.
int run(const Launch& launch, const std::function<void()>& body);

void set_seed(unsigned seed);  // 0: threads take turns; otherwise warps run ahead in a random order
const std::string& last_report();
[[noreturn]] void fail(const std::string& report);  // ends the running launch

extern Thread* current;  // null: the host
extern const Launch* current_launch;
extern std::vector<Block>* group;   // what runs together: a block, a cluster or a whole grid
extern std::uint32_t group_number;  // nothing orders the groups of a launch
extern std::uint32_t launch_epoch;  // what is older belongs to an earlier launch
extern std::uint32_t last_epoch;    // that any thread has reached

void give_way();  // to other threads, until what this one waits for is there

// Whether another's access in that epoch is over for the current thread.
bool ordered(std::uint32_t number, std::uint32_t group, std::uint32_t epoch);
std::string name_of(std::uint32_t number);  // a thread of this group, in words

// An ended thread counts as arrived from now on.
void leave(Barrier& barrier);

// Arriving returns the phase to wait for; it publishes what the thread has done if `release`.
unsigned arrive(Barrier& barrier, bool release);
void wait(Barrier& barrier, unsigned phase, bool acquire);

// A flag in device memory, that threads may touch at once. Adding publishes what the thread has
// done if `release`; waiting, until the flag is at least `value`, learns that if `acquire`.
bool reached(const unsigned* flag, unsigned value);
void forget_flags();
void add_to_flag(unsigned* flag, unsigned value, bool release);
void wait_for_flag(const unsigned* flag, unsigned value, bool acquire);

}  // namespace emulator
