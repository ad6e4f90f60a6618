#include "machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <random>

#include "memory.h"

#ifdef __x86_64__
asm(R"(
.text
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#endif

namespace emulator {

Thread* current = nullptr;
const Launch* current_launch = nullptr;
std::vector<Block>* group = nullptr;
std::uint32_t group_number = 0;
std::uint32_t launch_epoch = first_epoch;
std::uint32_t last_epoch = first_epoch;

namespace {

constexpr std::size_t stack_bytes = 64 << 10;

unsigned seed = 0;
std::string report;
bool broken = false;  // the running launch has failed
Fiber scheduler;
const std::function<void()>* kernel = nullptr;

unsigned char* stacks(std::size_t count) {
  static unsigned char* base = nullptr;
  static std::size_t held = 0;
  if (count > held) {
    if (base) munmap(base, held * stack_bytes);
    base = static_cast<unsigned char*>(mmap(nullptr, count * stack_bytes, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    held = count;
  }
  return base;
}

void thread_main() {
  (*kernel)();
  Thread& thread = *current;
  if (--thread.block->live == 0) close_shared(thread.block->shared);
  thread.done = true;
  for (Barrier* barrier : {&thread.warp->barrier, &thread.warp->exchange, &thread.block->barrier,
                           thread.block->cluster_barrier})
    leave(*barrier);
  for (;;) give_way();
}

bool ready(const Thread& thread) {
  if (thread.done) return false;
  if (thread.barrier) return thread.barrier->phase != thread.phase;
  return !thread.flag || reached(thread.flag, thread.least);
}

void report_deadlock() {
  report = "deadlock:";
  std::vector<std::pair<std::string, unsigned>> places;
  for (Block& block : *group)
    for (Thread& thread : block.threads) {
      if (thread.done) continue;
      const char* where = thread.barrier ? thread.barrier->name : "a flag";
      const std::string place = "block " + std::to_string(block.index.x) + " at " + where;
      const auto known = std::find_if(places.begin(), places.end(),
                                      [&](const auto& entry) { return entry.first == place; });
      if (known == places.end())
        places.emplace_back(place, 1);
      else
        ++known->second;
    }
  for (const auto& [place, count] : places)
    report += " " + std::to_string(count) + " threads of " + place + ";";
  broken = true;
}

// Runs the warps in turn, or in a random order, each as far as it can go.
void schedule(std::mt19937& random) {
  std::vector<std::vector<Thread*>> warps;
  std::size_t live = 0;
  for (Block& block : *group)
    for (Thread& thread : block.threads) {
      if (thread.lane == 0) warps.emplace_back();
      warps.back().push_back(&thread);
      ++live;
    }
  while (live && !broken) {
    bool moved = false;
    if (seed) std::shuffle(warps.begin(), warps.end(), random);
    for (auto& warp : warps) {
      for (bool again = true; again && !broken;) {
        again = false;
        for (Thread* thread : warp) {
          if (!ready(*thread)) continue;
          current = thread;
          Fiber::change(scheduler, thread->fiber);
          current = nullptr;
          again = moved = true;
          if (thread->done) --live;
          if (broken) return;
        }
        if (!seed) break;
      }
    }
    if (!moved && !broken) report_deadlock();
  }
}

void make_block(Block& block, std::size_t number, const Launch& launch, const SharedClock& clock,
                unsigned char* stack) {
  const std::size_t count = launch.block.count();
  const auto place = [](std::size_t i, const Dim& size) {
    return Dim(unsigned(i % size.x), unsigned(i / size.x % size.y), unsigned(i / size.x / size.y));
  };
  block.index = place(number, launch.grid);
  block.barrier.name = "__syncthreads";
  block.barrier.participants = unsigned(count);
  block.warps.resize((count + lanes - 1) / lanes);
  block.threads.resize(count);
  block.live = count;
  for (std::size_t i = 0; i < count; ++i) {
    Thread& thread = block.threads[i];
    thread.index = place(i, launch.block);
    thread.lane = unsigned(i % lanes);
    thread.number = unsigned((&block - group->data()) * count + i);
    thread.block = &block;
    thread.warp = &block.warps[i / lanes];
    thread.warp->barrier.name = "__syncwarp";
    thread.warp->exchange.name = "an exchange of the warp";
    ++thread.warp->barrier.participants;
    ++thread.warp->exchange.participants;
    thread.epoch = launch_epoch;
    thread.clock = clock;
    thread.fiber.start(stack + i * stack_bytes, stack_bytes, thread_main);
  }
}

// Blocks number first to first + size - 1.
void run_group(const Launch& launch, std::size_t first, std::size_t size, std::mt19937& random) {
  const std::size_t count = launch.block.count();
  std::vector<Block> blocks(size);
  std::vector<Barrier> clusters(size / launch.cluster);
  group = &blocks;
  unsigned char* stack = stacks(size * count);
  const auto clock = std::make_shared<const Clock>(size * count, launch_epoch - 1);
  for (std::size_t i = 0; i < size; ++i) {
    Block& block = blocks[i];
    make_block(block, first + i, launch, clock, stack + i * count * stack_bytes);
    block.rank = unsigned(i % launch.cluster);
    block.cluster_size = launch.cluster;
    block.cluster = &blocks[i - block.rank];
    block.cluster_barrier = &clusters[i / launch.cluster];
    block.cluster_barrier->name = "the cluster's barrier";
    block.cluster_barrier->participants = unsigned(launch.cluster * count);
    block.shared = open_shared(i, launch.shared);
  }
  schedule(random);
  for (Block& block : blocks)
    if (block.live) close_shared(block.shared);
  group = nullptr;
}

}  // namespace

void give_way() { Fiber::change(current->fiber, scheduler); }

int run(const Launch& launch, const std::function<void()>& body) {
  const std::size_t blocks = launch.grid.count(), threads = launch.block.count();
  const std::size_t size = launch.cooperative ? blocks : launch.cluster;
  report.clear();
  if (threads == 0 || threads > 1024 || blocks == 0 || launch.cluster == 0 || launch.cluster > 16 ||
      launch.grid.x % launch.cluster || launch.grid.y > 65535 || launch.grid.z > 65535 ||
      launch.shared > shared_limit || size > max_blocks || size * threads > 65536)
    return refused;
  current_launch = &launch;
  kernel = &body;
  broken = false;
  forget_flags();
  launch_epoch = ++last_epoch;
  std::mt19937 random(seed);
  std::vector<std::size_t> firsts;
  for (std::size_t first = 0; first < blocks; first += size) firsts.push_back(first);
  if (seed) std::shuffle(firsts.begin(), firsts.end(), random);
  for (const std::size_t first : firsts) {
    group_number = std::uint32_t(first / size);
    run_group(launch, first, size, random);
    if (broken) break;
  }
  current_launch = nullptr;
  return broken ? failed : 0;
}

void set_seed(unsigned value) { seed = value; }

const std::string& last_report() { return report; }

void fail(const std::string& text) {
  report = text;
  broken = true;
  for (;;) give_way();
}

std::string name_of(std::uint32_t number) {
  const std::size_t count = current_launch->block.count();
  const Dim& index = (*group)[number / count].index;
  return "thread " + std::to_string(number % count) + " of block (" + std::to_string(index.x) +
         ", " + std::to_string(index.y) + ")";
}

}  // namespace emulator
