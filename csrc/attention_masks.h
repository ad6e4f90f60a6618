// What attention's scores meet on the device before they are weights: the exponential's units, and
// masks, the causal rule, the tensors' ends and dropout as one query sees them.
#pragma once

#include <type_traits>

#include "attention_tiles.h"

namespace fastrnn::cuda {

template <class S>
constexpr S infinity = S(__builtin_huge_val());

// Exponentials are of base 2 for 16 bits, one instruction, and of e for the others.
template <class T>
constexpr bool base_two = sizeof(T) == 2;
template <class T>
constexpr Sum<T> exponent_unit = base_two<T> ? Sum<T>(1.4426950408889634) : Sum<T>(1);

template <class T>
__device__ __forceinline__ Sum<T> exponential(Sum<T> x) {
  if constexpr (base_two<T>)
    return power_of_two(x);
  else if constexpr (sizeof(T) == 4)
    return ::expf(x);
  else
    return ::exp(x);
}

__device__ __forceinline__ float logarithm(float x) { return ::logf(x); }
__device__ __forceinline__ double logarithm(double x) { return ::log(x); }

__device__ __forceinline__ std::uint32_t first_bits(int count) {
  return count < 32 ? (1u << count) - 1 : ~0u;
}

// One pair of batch and head.
template <class T>
struct Masks {
  const Attention& a;
  const unsigned char* bytes;  // a boolean mask
  const T* values;             // an additive one
  std::uint32_t pair;

  __device__ __forceinline__ Masks(const Attention& a, const Pair& pair)
      : a(a), bytes(nullptr), values(nullptr), pair(pair.number) {
    if (a.mask_kind == Mask::boolean)
      bytes = static_cast<unsigned char*>(a.mask.data) + pair.in(a.mask);
    if (a.mask_kind == Mask::additive) values = static_cast<T*>(a.mask.data) + pair.in(a.mask);
  }

  __device__ __forceinline__ Index place(Index i, Index j) const {
    return i * a.mask.row + j * a.mask_column;
  }
  // Of query i and of the key `further` than j.
  __device__ __forceinline__ Sum<T> added(Index i, Index j, int further) const {
    const Sum<T> value = widen(values[place(i, j) + further * int(a.mask_column)]);
    // The least numbers of bfloat16 stay finite: a row of nothing else is not one without keys.
    constexpr Sum<T> most = Sum<T>(0x1.fffffcp127) / exponent_unit<T>;
    return (base_two<T> && value < -most ? -most : value) * exponent_unit<T>;
  }

  // Whether it is sure that all these queries attend to all these keys.
  __device__ __forceinline__ bool all_count(Index i, int queries, Index j, int keys) const {
    return a.mask_kind == Mask::none && i + queries <= a.queries && j + keys <= a.keys &&
           (!a.causal || j + keys <= i + 1);
  }

  // Of the keys j to j + Count - 1 those that query i attends to, a bit each.
  template <int Count>
  __device__ __forceinline__ std::uint32_t counting(Index i, Index j) const {
    const Index end = a.causal && i + 1 < a.keys ? i + 1 : a.keys;
    const Index inside = i < a.queries ? end - j : 0;
    std::uint32_t bits = inside <= 0 ? 0 : first_bits(inside < Count ? int(inside) : Count);
    if (a.mask_kind == Mask::none || bits == 0) return bits;
    const Index at = place(i, j);
    if (a.mask_column == 0) return (bytes ? allows(bytes[at]) : allows(values[at])) ? bits : 0;
    const bool whole = j + Count <= a.keys;
    return bits & (bytes ? of_row<Count>(bytes + at, bits, whole)
                         : of_row<Count>(values + at, bits, whole));
  }

  // Whether dropout keeps the weights of query i and of key j, and of the one after an even j.
  struct Kept {
    bool first, second;
  };
  __device__ __forceinline__ Kept kept(Index i, Index j) const {
    std::uint32_t words[4];
    device::philox(std::uint64_t(*a.seed), std::uint32_t(j / 4), pair, std::uint32_t(i), 0, words);
    // Chosen, not indexed: an index would put the words into the device's local memory.
    const std::uint32_t first =
        j & 2 ? (j & 1 ? words[3] : words[2]) : (j & 1 ? words[1] : words[0]);
    return {first >= a.dropped_below, (j & 2 ? words[3] : words[1]) >= a.dropped_below};
  }

 private:
  static __device__ __forceinline__ bool allows(unsigned char byte) { return byte != 0; }
  static __device__ __forceinline__ bool allows(T value) {
    return !(widen(value) == -infinity<Sum<T>>);
  }

  // Bit i: whether byte i is not 0. The product moves the bytes' highest bits next to each other,
  // in its last four places.
  static __device__ __forceinline__ std::uint32_t nonzero(std::uint32_t bytes) {
    const std::uint32_t high = (((bytes & 0x7F7F7F7F) + 0x7F7F7F7F) | bytes) & 0x80808080;
    return high * 0x00204081 >> 28;
  }

  // The bits of Count values side by side, 16 bytes at a time where all are there, or one by one.
  template <int Count, class V>
  static __device__ __forceinline__ std::uint32_t of_row(const V* row, std::uint32_t wanted,
                                                         bool whole) {
    constexpr int width = 16 / int(sizeof(V));
    std::uint32_t bits = 0;
    if (Count % width == 0 && whole && reinterpret_cast<std::uintptr_t>(row) % 16 == 0) {
      // A boolean mask's bytes by fours.
      using Word = std::conditional_t<sizeof(V) == 1, std::uint32_t, V>;
      constexpr int words = 16 / int(sizeof(Word)), each = width / words;
      Packet<Word, words> pieces[Count / width + (Count < width)];
#pragma unroll
      for (int i = 0; i < Count / width; ++i)
        pieces[i] = load<Word, words>(reinterpret_cast<const Word*>(row + i * width));
#pragma unroll
      for (int i = 0; i < Count / each; ++i) {
        const Word word = pieces[i / words].values[i % words];
        if constexpr (each == 1)
          bits |= std::uint32_t(allows(word)) << i;
        else
          bits |= nonzero(word) << each * i;
      }
    } else {
#pragma unroll 8
      for (int i = 0; i < Count; ++i)
        if (wanted >> i & 1) bits |= std::uint32_t(allows(row[i])) << i;
    }
    return bits;
  }
};

}  // namespace fastrnn::cuda
