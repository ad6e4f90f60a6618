// The emulated twin of csrc/gpu.h: the same names, run by machine.h.
#pragma once

#include <cmath>
#include <cstring>
#include <source_location>
#include <tuple>
#include <type_traits>

#include "machine.h"
#include "memory.h"
#include "numbers.h"
#include "sites.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::current->block->index)
#define blockDim (emulator::current_launch->block)
#define gridDim (emulator::current_launch->grid)

#define FASTRNN_SHARED(T, name) \
  T* const name = reinterpret_cast<T*>(emulator::current->block->shared)

namespace emulator {

// What every lane of the warp holds, for of_lane.
template <class T>
T* exchange(const T& mine) {
  static_assert(sizeof(T) <= slot_size);
  Thread& thread = *current;
  auto& slots = thread.warp->slots[thread.parity ^= 1];
  std::memcpy(slots[thread.lane], &mine, sizeof mine);
  wait(thread.warp->exchange, arrive(thread.warp->exchange, false), false);
  return reinterpret_cast<T*>(slots);
}

template <class T>
T of_lane(const T* all, unsigned lane) {
  T value;
  std::memcpy(&value, reinterpret_cast<const unsigned char*>(all) + lane * slot_size, sizeof value);
  return value;
}

}  // namespace emulator

using Place = std::source_location;

inline void __syncthreads(const Place& where = Place::current()) {
  if (emulator::removed("__syncthreads", where)) return;
  emulator::Barrier& barrier = emulator::current->block->barrier;
  emulator::wait(barrier, emulator::arrive(barrier, true), true);
}

inline void __syncwarp(const Place& where = Place::current()) {
  if (emulator::removed("__syncwarp", where)) return;
  emulator::Barrier& barrier = emulator::current->warp->barrier;
  emulator::wait(barrier, emulator::arrive(barrier, true), true);
}

namespace fastrnn::cuda {

using emulator::narrow;
using emulator::widen;
using Half = emulator::Half;
using BFloat16 = emulator::BFloat16;

// The compiler takes them apart, or has no call for so many.
template <class Whole, class T>
Whole& at_once(T* first) {
  emulator::check_aligned(first, alignof(Whole), !std::is_const_v<Whole>);
  return *reinterpret_cast<Whole*>(first);
}

struct Grid {
  unsigned x, y;
  int threads;
  std::int64_t shared = 0;
  int cluster = 1;
  bool cooperative = false;
};

template <class... P, class... A>
int launch(void (*kernel)(P...), const Grid& grid, void*, A... arguments) {
  const emulator::Launch how{{grid.x, grid.y},
                             {unsigned(grid.threads)},
                             std::size_t(grid.shared),
                             unsigned(grid.cluster),
                             grid.cooperative};
  return emulator::run(how, [&] { kernel(P(arguments)...); });
}

template <class T>
T shuffle_xor(T value, unsigned mask) {
  return emulator::of_lane(emulator::exchange(value), emulator::current->lane ^ mask);
}

template <class T>
T shuffle(T value, int lane) {
  return emulator::of_lane(emulator::exchange(value), unsigned(lane) % emulator::lanes);
}

inline unsigned ballot(bool value) {
  const bool* const all = emulator::exchange(value);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < emulator::lanes; ++lane)
    votes |= unsigned(emulator::of_lane(all, lane)) << lane;
  return votes;
}

inline bool block_any(bool value, const Place& where = Place::current()) {
  const bool orders = !emulator::removed("block_any", where);
  emulator::Block& block = *emulator::current->block;
  // Three in turn: this one, the last, which others may still read, and the next, now free.
  const unsigned vote = emulator::current->votes++ % 3;
  block.votes[(vote + 1) % 3] = false;
  block.votes[vote] = block.votes[vote] || value;
  emulator::wait(block.barrier, emulator::arrive(block.barrier, orders), orders);
  return block.votes[vote];
}

inline float power_of_two(float x) { return ::exp2f(x); }
template <class S>
void make_now(S&) {}
inline float reciprocal(float x) { return 1.f / x; }

template <class T>
std::uint32_t pair_of(float low, float high, T) {
  T first, second;
  narrow(low, &first), narrow(high, &second);
  return first.bits | std::uint32_t(second.bits) << 16;
}

template <bool Transposed>
void load_matrices(std::uint32_t (&to)[4], const void* row) {
  emulator::check_aligned(row, 16, false);
  const auto* const all = emulator::exchange(static_cast<const std::uint16_t*>(row));
  const unsigned group = emulator::current->lane / 4, place = emulator::current->lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    std::uint32_t found[2];
    for (unsigned j = 0; j < 2; ++j) {
      const unsigned r = Transposed ? 2 * place + j : group, c = Transposed ? group : 2 * place + j;
      found[j] = emulator::of_lane(all, 8 * i + r)[c];
    }
    to[i] = found[0] | found[1] << 16;
  }
}

// Nothing is there before the wait, and what was is not to be read any more.
template <int Bytes = 16>
void copy_async(void* to, const void* from, bool zeros) {
  if (zeros) from = nullptr;
  emulator::begin_copy(to, from, Bytes);
  emulator::current->copies.back().push_back({to, from, Bytes});
}

inline void copy_cached(void* to, const void* from) { copy_async(to, from, false); }

inline void end_copies() { emulator::current->copies.emplace_back(); }

template <int Left>
void wait_copies(const Place& where = Place::current()) {
  if (emulator::removed("wait_copies", where)) return;
  auto& groups = emulator::current->copies;
  for (; groups.size() > Left + 1; groups.erase(groups.begin()))
    for (const emulator::Copy& copy : groups.front()) {
      const auto* const from = static_cast<const std::uint64_t*>(copy.from);
      auto* const to = static_cast<std::uint64_t*>(copy.to);
      for (int i = 0; i < copy.bytes / 8; ++i) to[i] = from ? from[i] : 0;
    }
}

inline unsigned cluster_rank() { return emulator::current->block->rank; }

template <class T>
T* cluster_peer(T* mine, unsigned rank) {
  emulator::Block* const block = emulator::current->block;
  return reinterpret_cast<T*>(block->cluster[rank].shared +
                              (reinterpret_cast<const unsigned char*>(mine) - block->shared));
}

inline void cluster_arrive(const Place& where = Place::current()) {
  emulator::Thread& thread = *emulator::current;
  const bool release = !emulator::removed("cluster_arrive's release", where);
  thread.cluster_phase = emulator::arrive(*thread.block->cluster_barrier, release);
}

inline void cluster_wait(const Place& where = Place::current()) {
  emulator::Thread& thread = *emulator::current;
  const bool acquire = !emulator::removed("cluster_wait's acquire", where);
  emulator::wait(*thread.block->cluster_barrier, thread.cluster_phase, acquire);
  thread.met_cluster = true;
}

inline float to_tf32(float x) {
  const std::uint32_t bits = emulator::bits_of(x);
  return std::isfinite(x) ? emulator::float_of((bits + 0x1000) & ~0x1FFFu) : x;
}

// a: 16 x K by rows, b: K x 8 by columns, d: 16 x 8; in the fragments' order of PTX
// ISA 9.7.14.5.8 (K = 16) and 9.7.14.5.6 (K = 8, of TF32, whose other bits nobody looks at).
template <class T>
void mma(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  struct Fragments {
    std::uint32_t a[4], b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof mine.a), std::memcpy(mine.b, b, sizeof mine.b);
  const Fragments* const all = emulator::exchange(mine);
  const unsigned group = emulator::current->lane / 4, place = emulator::current->lane % 4;
  constexpr int of_word = 4 / int(sizeof(T)), half_k = 4 * of_word;
  const auto value = [](std::uint32_t word, int k) {
    if constexpr (sizeof(T) == 4)
      return emulator::float_of(word & ~0x1FFFu);
    else
      return widen(T{std::uint16_t(k & 1 ? word >> 16 : word)});
  };
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 2 * half_k; ++k) {
      const unsigned holder = k % half_k / of_word, high = k / half_k;
      const float left = value(emulator::of_lane(all, group * 4 + holder).a[high * 2 + half], k);
      for (int column = 0; column < 2; ++column) {
        const Fragments right = emulator::of_lane(all, (place * 2 + column) * 4 + holder);
        d[half * 2 + column] += left * value(right.b[high], k);
      }
    }
}

inline void add_release(unsigned* flag, unsigned value, const Place& where = Place::current()) {
  const bool release = !emulator::removed("add_release's release", where);
  emulator::add_to_flag(flag, value, release);
}

inline void wait_at_least(const unsigned* flag, unsigned value,
                          const Place& where = Place::current()) {
  const bool acquire = !emulator::removed("wait_at_least's acquire", where);
  emulator::wait_for_flag(flag, value, acquire);
}

}  // namespace fastrnn::cuda
