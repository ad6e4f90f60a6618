// What orders the threads' accesses: barriers, and flags in memory.
#include <algorithm>
#include <unordered_map>

#include "machine.h"
#include "memory.h"

namespace emulator {
namespace {

std::unordered_map<const void*, Clock> flags;  // what their writers have published

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

}  // namespace

bool reached(const unsigned* flag, unsigned value) { return int(*flag - value) >= 0; }

void forget_flags() { flags.clear(); }

void leave(Barrier& barrier) {
  --barrier.participants;
  if (barrier.participants && barrier.arrived == barrier.participants) complete(barrier);
}

bool ordered(std::uint32_t number, std::uint32_t in_group, std::uint32_t epoch) {
  if (epoch < launch_epoch) return true;
  if (in_group != (group_number & 0xFFFF)) return false;
  return number == current->number || epoch <= (*current->clock)[number];
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
