// The registers of this unit's instruction set, and bfloat16 in them. In a namespace of the
// instruction set, as all that follows: the same templates built under other flags must stay other
// functions, or the linker would keep one copy for all.
#pragma once

#include <cstddef>
#include <cstdint>

#include "inline.h"

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace fastrnn::FASTRNN_ISA {

using Index = std::int64_t;

#if defined(__AVX512F__)
constexpr int vector_bytes = 64, accumulators = 24;  // of 32 registers
#elif defined(__AVX2__)
constexpr int vector_bytes = 32, accumulators = 12;  // of 16 registers
#elif defined(__aarch64__)
constexpr int vector_bytes = 16, accumulators = 24;  // of 32 registers
#else
constexpr int vector_bytes = 16, accumulators = 8;
#endif

template <class T>
struct Constants;

template <>
struct Constants<float> {
  typedef float Register __attribute__((vector_size(vector_bytes)));
  typedef std::int32_t Whole;
  typedef Whole Bits __attribute__((vector_size(vector_bytes)));
  static constexpr int mantissa = 23, bias = 127, degree = 7;
  static constexpr float round = 0x1.8p23f;  // adding it leaves the integer in the low bits
  static constexpr float ln2_high = 0x1.63p-1f, ln2_low = -0x1.bd0106p-13f;
  static constexpr float exp_limit = 87.f, exp_overflow = 88.8f, tanh_limit = 9.1f;
  // Of 2^r, |r| <= 1/2: the least relative error among those that are 1 at 0.
  static constexpr float exp2_series[] = {1.f,          0.69314721f,   0.24022653f,   0.055503106f,
                                          0.009617693f, 0.0013406644f, 0.00015594678f};
};

template <>
struct Constants<double> {
  typedef double Register __attribute__((vector_size(vector_bytes)));
  typedef std::int64_t Whole;
  typedef Whole Bits __attribute__((vector_size(vector_bytes)));
  static constexpr int mantissa = 52, bias = 1023, degree = 13;
  static constexpr double round = 0x1.8p52;
  static constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double exp_limit = 708., exp_overflow = 709.9, tanh_limit = 19.1;
  static constexpr double exp2_series[] = {
      1.,
      0.693147180559945697,
      0.24022650695910098,
      0.0555041086647903938,
      0.00961812910760700225,
      0.00133335581534401334,
      0.000154035304415723593,
      1.52527273850382371e-5,
      1.32154426751827578e-6,
      1.01806477221188521e-7,
      7.07257044246768134e-9,
      4.07806269946622489e-10,
  };
};

// The upper half of a float. What is stored so is computed in float; products take it as it is, in
// pairs of neighbours along k.
struct Bf16 {
  std::uint16_t bits;
};

using Floats = Constants<float>::Register;
typedef std::uint32_t Words __attribute__((vector_size(vector_bytes)));  // a pair of Bf16 each
typedef std::uint16_t Halves __attribute__((vector_size(vector_bytes / 2)));
constexpr int float_width = vector_bytes / 4;

FASTRNN_INLINE Halves load_halves(const Bf16* p) {
  Halves h;
  __builtin_memcpy(&h, p, sizeof h);
  return h;
}

// The first n, and zeros.
FASTRNN_INLINE Halves load_halves(const Bf16* p, Index n) {
  if (n >= float_width) return load_halves(p);
  if (n <= 0) return Halves{};
#ifdef __AVX512F__
  return Halves(_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p));
#else
  Halves h{};
  for (Index i = 0; i < n; ++i) h[i] = p[i].bits;
  return h;
#endif
}

FASTRNN_INLINE void store_halves(Halves h, Bf16* p) { __builtin_memcpy(p, &h, sizeof h); }

FASTRNN_INLINE void store_halves(Halves h, Bf16* p, Index n) {
  if (n >= float_width) return store_halves(h, p);
#ifdef __AVX512F__
  _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), __m256i(h));
#else
  for (Index i = 0; i < n; ++i) p[i].bits = h[i];
#endif
}

FASTRNN_INLINE Floats widen(Halves h) {
#if defined(__AVX2__) && !defined(__AVX512F__)  // gcc's conversion has five instructions
  return Floats(Words(_mm256_cvtepu16_epi32(__m128i(h))) << 16);
#else
  return Floats(__builtin_convertvector(h, Words) << 16);
#endif
}

// To the nearest, of two to the even one; NaN stays.
FASTRNN_INLINE Halves narrow(Floats x) {
#ifdef __AVX512BF16__
  return Halves(_mm512_cvtneps_pbh(__m512(x)));
#else
  const Words bits = Words(x), upper = bits >> 16;
  const Words rounded = (bits + 0x7FFF + (upper & 1)) >> 16, quiet = upper | 0x40;
  return __builtin_convertvector(x == x ? rounded : quiet, Halves);
#endif
}

// Pairs: `first` in the lower halves, `second` in the upper ones.
FASTRNN_INLINE Words zip(Halves first, Halves second) {
  return __builtin_convertvector(first, Words) | __builtin_convertvector(second, Words) << 16;
}

// One of each pair.
FASTRNN_INLINE Floats of_pair(Words pairs, int which) {
  return Floats(which == 0 ? pairs << 16 : pairs & 0xFFFF0000u);
}

}  // namespace fastrnn::FASTRNN_ISA
