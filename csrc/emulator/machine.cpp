#include "machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <random>
#include <unordered_map>

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

namespace {

constexpr std::size_t stack_bytes = 64 << 10;

unsigned seed = 0;
std::string report;
bool broken = false;  // the running launch has failed
Fiber scheduler;
const std::function<void()>* kernel = nullptr;
std::uint32_t last_epoch = first_epoch;  // any thread has reached so far
std::unordered_map<const void*, Clock> flags;

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

void give_way() { Fiber::change(current->fiber, scheduler); }

void raise(Clock& clock, const Clock& other) {
  for (std::size_t i = 0; i < clock.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

void next_epoch(Thread& thread) { last_epoch = std::max(last_epoch, ++thread.epoch); }

void complete(Barrier& barrier) {
  if (!barrier.clocks.empty()) {
    auto joined = std::make_shared<Clock>(*barrier.clocks[0]);
    for (std::size_t i = 1; i < barrier.clocks.size(); ++i) raise(*joined, *barrier.clocks[i]);
    for (const auto& [number, epoch] : barrier.epochs)
      (*joined)[number] = std::max((*joined)[number], epoch);
    barrier.result = std::move(joined);
  }
  barrier.clocks.clear();
  barrier.epochs.clear();
  barrier.arrived = 0;
  ++barrier.phase;
}

// An ended thread counts as arrived from now on.
void leave(Barrier& barrier) {
  --barrier.participants;
  if (barrier.participants && barrier.arrived == barrier.participants) complete(barrier);
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

bool reached(const unsigned* flag, unsigned value) { return int(*flag - value) >= 0; }

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
  flags.clear();
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

bool ordered(std::uint32_t number, std::uint32_t in_group, std::uint32_t epoch) {
  if (epoch < launch_epoch) return true;
  if (in_group != (group_number & 0xFFFF)) return false;
  return number == current->number || epoch <= (*current->clock)[number];
}

std::string name_of(std::uint32_t number) {
  const std::size_t count = current_launch->block.count();
  const Dim& index = (*group)[number / count].index;
  return "thread " + std::to_string(number % count) + " of block (" + std::to_string(index.x) +
         ", " + std::to_string(index.y) + ")";
}

unsigned arrive(Barrier& barrier, bool release) {
  const unsigned phase = barrier.phase;
  if (release) {
    // Threads that met at the last barrier hold the same clock: few are different.
    const SharedClock& clock = current->clock;
    if (std::find(barrier.clocks.rbegin(), barrier.clocks.rend(), clock) == barrier.clocks.rend())
      barrier.clocks.push_back(clock);
    barrier.epochs.emplace_back(current->number, current->epoch);
    next_epoch(*current);
  }
  if (++barrier.arrived == barrier.participants) complete(barrier);
  return phase;
}

void wait(Barrier& barrier, unsigned phase, bool acquire) {
  if (barrier.phase == phase) {
    current->barrier = &barrier, current->phase = phase;
    give_way();
    current->barrier = nullptr;
  }
  if (!acquire || !barrier.result || barrier.result == current->clock) return;
  const Clock& mine = *current->clock;
  const Clock& theirs = *barrier.result;
  bool more = false;  // do I know anything that they do not?
  for (std::size_t i = 0; i < mine.size() && !more; ++i) more = mine[i] > theirs[i];
  if (!more) {
    current->clock = barrier.result;
    return;
  }
  auto joined = std::make_shared<Clock>(mine);
  raise(*joined, theirs);
  current->clock = std::move(joined);
}

void add_to_flag(unsigned* flag, unsigned value, bool release) {
  touch_flag(flag, sizeof *flag);
  if (release) {
    Clock& clock = flags.try_emplace(flag, current->clock->size(), 0u).first->second;
    raise(clock, *current->clock);
    clock[current->number] = std::max(clock[current->number], current->epoch);
    next_epoch(*current);
  }
  *flag += value;
}

void wait_for_flag(const unsigned* flag, unsigned value, bool acquire) {
  touch_flag(flag, sizeof *flag);
  if (!reached(flag, value)) {
    current->flag = flag, current->least = value;
    give_way();
    current->flag = nullptr;
  }
  const auto known = flags.find(flag);
  if (!acquire || known == flags.end()) return;
  auto joined = std::make_shared<Clock>(*current->clock);
  raise(*joined, known->second);
  current->clock = std::move(joined);
}

}  // namespace emulator
