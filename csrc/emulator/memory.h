// The emulated device's memory, and a record of who touched what: finds accesses out of bounds,
// reads of shared memory that was never written, accesses that are not aligned, and pairs of them
// that nothing orders.
//
// The kernels are compiled with the calls that -fsanitize=thread puts at every load and store, and
// linked to memory.cpp, which defines them, in place of the sanitizer's library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

constexpr std::size_t shared_limit = 227 << 10;  // that a block can have
constexpr std::size_t max_blocks = 1 << 9;       // running together
constexpr std::uint32_t first_epoch = 16;        // smaller ones are marks: see memory.cpp

// Device memory, `misalign` bytes off a boundary of 256, that lives until release_all. Its bytes
// are 0xFF, NaN in every dtype, and nothing may touch what is around it. Null: it is used up.
unsigned char* allocate(std::size_t bytes, std::size_t misalign);
void release_all();

// A new block's shared memory, and its end.
unsigned char* open_shared(std::size_t number, std::size_t bytes);
void close_shared(unsigned char* shared);

// The current thread needs a multiple of `bytes` here, to read or to write.
void check_aligned(const void* address, std::size_t bytes, bool write);

// It begins to write what is at `from` (null: zeros): until it has, nothing that can be read is
// there.
void begin_copy(void* to, const void* from, std::size_t bytes);

// An access of a flag: in bounds, but not recorded, as threads may touch it at once.
void touch_flag(const void* flag, std::size_t bytes);

}  // namespace emulator
