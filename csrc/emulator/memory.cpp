#include "memory.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "machine.h"

namespace emulator {
namespace {

constexpr std::size_t global_bytes = std::size_t(256) << 20;
constexpr std::size_t slot_bytes = 256 << 10;  // of addresses for a block's shared memory
constexpr std::size_t arena_bytes = global_bytes + max_blocks * slot_bytes;
constexpr std::size_t gap = 4096;

// Two bytes, the smallest thing that threads write next to each other.
constexpr std::size_t grain = 2;

// Epochs of a write that are marks.
constexpr std::uint32_t outside = 0, unwritten = 1, by_host = 2;

struct Access {
  std::uint32_t epoch;
  std::uint16_t thread, group;
};

struct Record {
  Access write, read;  // the last of each; of reads that nothing orders one is kept, at random
};

template <class T>
T* reserve(std::size_t count) {
  void* p = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : static_cast<T*>(p);
}

unsigned char* const arena = reserve<unsigned char>(arena_bytes);
Record* const records = reserve<Record>(arena_bytes / grain);
std::size_t used = gap;
unsigned coin = 1;

std::size_t offset(const void* address) {
  return static_cast<const unsigned char*>(address) - arena;
}

void mark(std::size_t begin, std::size_t bytes, std::uint32_t epoch) {
  for (std::size_t i = begin / grain; i < (begin + bytes + grain - 1) / grain; ++i)
    records[i] = {{epoch, 0, 0}, {by_host, 0, 0}};
}

std::string place(std::size_t at) {
  if (at < global_bytes) return "device memory";
  const std::size_t slot = (at - global_bytes) / slot_bytes;
  return "shared memory + " + std::to_string((at - global_bytes) % slot_bytes - gap) +
         " of block " + (slot < group->size() ? std::to_string((*group)[slot].index.x) : "?");
}

std::string function_at(void* address) {
  Dl_info info;
  if (!dladdr(address, &info) || !info.dli_sname) return "";
  int status = 0;
  char* plain = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  const std::string name = status == 0 ? plain : info.dli_sname;
  std::free(plain);
  return " in " + name.substr(0, 160);
}

[[noreturn]] void complain(const char* mistake, std::size_t at, bool write, const Access* other,
                           bool other_wrote, void* caller) {
  std::string text = std::string(mistake) + ": " + name_of(current->number) +
                     (write ? " writes " : " reads ") + place(at);
  if (other) {
    text += other_wrote ? ", written by " : ", read by ";
    text += other->group == (group_number & 0xFFFF) ? name_of(other->thread) : "another block";
    text += " with no barrier between";
  }
  fail(text + function_at(caller));
}

void check_peer(std::size_t at, void* caller, bool write) {
  Block* const block = current->block;
  const std::size_t slot = (at - global_bytes) / slot_bytes;
  Block* const owner = slot < group->size() ? &(*group)[slot] : nullptr;
  if (owner == block) return;
  if (!owner || owner->cluster != block->cluster)
    complain("shared memory of another cluster", at, write, nullptr, false, caller);
  if (!current->met_cluster)
    complain("shared memory of a block that may not have begun", at, write, nullptr, false, caller);
}

void access(const void* address, std::size_t bytes, bool write, void* caller) {
  const std::size_t at = offset(address);
  if (at >= arena_bytes || !current) return;
  if (at >= global_bytes) check_peer(at, caller, write);
  const Access me{current->epoch, std::uint16_t(current->number), std::uint16_t(group_number)};
  for (std::size_t i = at / grain; i < (at + bytes + grain - 1) / grain; ++i) {
    Record& record = records[i];
    if (record.write.epoch == outside) complain("out of bounds", at, write, nullptr, false, caller);
    const auto over = [](const Access& a) { return ordered(a.thread, a.group, a.epoch); };
    if (!over(record.write)) complain("race", at, write, &record.write, true, caller);
    if (write) {
      if (!over(record.read)) complain("race", at, write, &record.read, false, caller);
      record.write = me;
    } else {
      if (record.write.epoch == unwritten)
        complain("never written", at, write, nullptr, false, caller);
      coin = coin * 1664525u + 1013904223u;
      if (over(record.read) || coin >> 31) record.read = me;
    }
  }
}

void expect_aligned(const void* address, std::size_t bytes, bool write, void* caller) {
  const std::size_t at = offset(address);
  if (at < arena_bytes && current && at % bytes)
    complain("misaligned", at, write, nullptr, false, caller);
}

// What the compiler holds for aligned is one instruction on a GPU, which faults where it is not.
void aligned_access(const void* address, std::size_t bytes, bool write, void* caller) {
  expect_aligned(address, bytes, write, caller);
  access(address, bytes, write, caller);
}

}  // namespace

void check_aligned(const void* address, std::size_t bytes, bool write) {
  expect_aligned(address, bytes, write, __builtin_return_address(0));
}

unsigned char* allocate(std::size_t bytes, std::size_t misalign) {
  const std::size_t begin = (used + 255) / 256 * 256 + misalign;
  if (begin + bytes + gap > global_bytes) return nullptr;
  used = begin + bytes + gap;
  std::memset(arena + begin, 0xFF, bytes);
  mark(begin, bytes, by_host);
  return arena + begin;
}

void release_all() {
  madvise(records, used / grain * sizeof(Record), MADV_DONTNEED);
  used = gap;
}

unsigned char* open_shared(std::size_t number, std::size_t bytes) {
  const std::size_t begin = global_bytes + number * slot_bytes + gap;
  std::memset(arena + begin, 0xFF, bytes);
  mark(begin, bytes, unwritten);
  return arena + begin;
}

void close_shared(unsigned char* shared) {
  const std::size_t begin = offset(shared) / grain, count = current_launch->shared / grain;
  const std::size_t threads = current_launch->block.count();
  for (std::size_t i = begin; current && i < begin + count; ++i)
    for (const Access* last : {&records[i].write, &records[i].read})
      if (last->thread / threads != current->number / threads &&
          !ordered(last->thread, last->group, last->epoch))
        fail("shared memory + " + std::to_string((i - begin) * grain) + " of a block that ends: " +
             name_of(last->thread) + " touches it with no barrier between");
  mark(offset(shared), current_launch->shared, outside);
}

void begin_copy(void* to, const void* from, std::size_t bytes) {
  check_aligned(from, bytes, false);
  aligned_access(to, bytes, true, __builtin_return_address(0));
  const std::size_t at = offset(to) / grain;
  for (std::size_t i = at; i < at + bytes / grain; ++i) records[i].write.epoch = unwritten;
}

void touch_flag(const void* flag, std::size_t bytes) {
  const std::size_t at = offset(flag);
  for (std::size_t i = at / grain; at < arena_bytes && i < (at + bytes) / grain; ++i)
    if (records[i].write.epoch == outside)
      complain("out of bounds", at, true, nullptr, false, nullptr);
}

}  // namespace emulator

// What the compiler calls. Addresses outside the arena are a thread's own stack, constants and
// parameters: nothing to record.
#define CALLER __builtin_return_address(0)
#define PAIR(size)                                                                        \
  void __tsan_read##size(void* p) { emulator::aligned_access(p, size, false, CALLER); }   \
  void __tsan_write##size(void* p) { emulator::aligned_access(p, size, true, CALLER); }   \
  void __tsan_unaligned_read##size(void* p) { emulator::access(p, size, false, CALLER); } \
  void __tsan_unaligned_write##size(void* p) { emulator::access(p, size, true, CALLER); }
extern "C" {
PAIR(1)
PAIR(2)
PAIR(4)
PAIR(8)
PAIR(16)
void __tsan_read_range(void* p, std::size_t n) { emulator::access(p, n, false, CALLER); }
void __tsan_write_range(void* p, std::size_t n) { emulator::access(p, n, true, CALLER); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
