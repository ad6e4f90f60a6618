// AVX-512 for processors without it: what the kernels use of it, lane by lane or in the compiler's
// own vectors of 64 bytes. Slow, and for tests alone: found before the compiler's header of this
// name, it makes the units that include it those of AVX-512.
#pragma once

#include_next <immintrin.h>

#include <cstdint>

#define __AVX512F__ 1
#define __AVX512BF16__ 1

namespace fastrnn::emulated {

#define FASTRNN_EMULATED static inline __attribute__((always_inline))

typedef std::uint16_t Halves __attribute__((vector_size(32)));
typedef std::uint32_t Words __attribute__((vector_size(64)));
typedef std::uint64_t Pairs __attribute__((vector_size(64)));
typedef char Bytes __attribute__((vector_size(16)));
typedef std::uint32_t HalfWords __attribute__((vector_size(32)));

// The lanes whose bit is set, and zeros.
template <class V, class T>
FASTRNN_EMULATED void load_some(unsigned bits, const T* from, V& to) {
  to = V{};
  for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i)
    if (bits >> i & 1) to[i] = from[i];
}

template <class V, class T>
FASTRNN_EMULATED void store_some(T* to, unsigned bits, const V& from) {
  for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i)
    if (bits >> i & 1) to[i] = from[i];
}

// A bit for each lane that `holds`.
template <class V, class F>
FASTRNN_EMULATED unsigned bits_of(const V& x, const F& holds) {
  unsigned bits = 0;
  for (unsigned i = 0; i < sizeof(V) / sizeof(x[0]); ++i) bits |= unsigned(holds(i)) << i;
  return bits;
}

FASTRNN_EMULATED __m512 load(unsigned bits, const float* from) {
  __m512 to;
  load_some(bits, from, to);
  return to;
}
FASTRNN_EMULATED __m512d load(unsigned bits, const double* from) {
  __m512d to;
  load_some(bits, from, to);
  return to;
}
FASTRNN_EMULATED __m128i load_bytes(unsigned bits, const char* from) {
  Bytes to;
  load_some(bits, from, to);
  return __m128i(to);
}
FASTRNN_EMULATED __m256i load_halves(unsigned bits, const void* from) {
  Halves to;
  load_some(bits, static_cast<const std::uint16_t*>(from), to);
  return __m256i(to);
}
FASTRNN_EMULATED __m512i load_words(const void* from) {
  __m512i to;
  __builtin_memcpy(&to, from, sizeof to);
  return to;
}

FASTRNN_EMULATED void store(float* to, unsigned bits, __m512 x) { store_some(to, bits, x); }
FASTRNN_EMULATED void store(double* to, unsigned bits, __m512d x) { store_some(to, bits, x); }
FASTRNN_EMULATED void store_halves(void* to, unsigned bits, __m256i x) {
  store_some(static_cast<std::uint16_t*>(to), bits, Halves(x));
}
FASTRNN_EMULATED void stream(__m512i* to, __m512i x) { __builtin_memcpy(to, &x, sizeof x); }

// The second where one is NaN.
template <class V>
FASTRNN_EMULATED V smaller(V a, V b) {
  return a < b ? a : b;
}
template <class V>
FASTRNN_EMULATED V larger(V a, V b) {
  return a > b ? a : b;
}
template <class V>
FASTRNN_EMULATED V blend(unsigned bits, V clear, V set) {
  for (unsigned i = 0; i < sizeof(V) / sizeof(clear[0]); ++i)
    if (bits >> i & 1) clear[i] = set[i];
  return clear;
}

FASTRNN_EMULATED __m512i every(int word) { return __m512i(Words{} + std::uint32_t(word)); }
FASTRNN_EMULATED unsigned reach(__m512i a, __m512i b) {
  const Words x = Words(a), y = Words(b);
  return bits_of(x, [&](unsigned i) { return x[i] >= y[i]; });
}
FASTRNN_EMULATED unsigned reach(__m256i a, __m256i b) {
  const HalfWords x = HalfWords(a), y = HalfWords(b);
  return bits_of(x, [&](unsigned i) { return x[i] >= y[i]; });
}
FASTRNN_EMULATED unsigned common(__m128i a, __m128i b) {
  const Bytes both = Bytes(a & b);
  return bits_of(both, [&](unsigned i) { return both[i] != 0; });
}
FASTRNN_EMULATED __m512i multiply(__m512i a, __m512i b) {
  constexpr std::uint64_t low = 0xFFFFFFFF;
  return __m512i((Pairs(a) & low) * (Pairs(b) & low));
}

// bfloat16's instructions take and leave a number below float's smallest normal one as 0.
FASTRNN_EMULATED Words flushed(Words x) { return (x & 0x7F800000u) == 0 ? x & 0x80000000u : x; }

FASTRNN_EMULATED __m256i narrow(__m512 x) {
  const Words bits = flushed(Words(x)), upper = bits >> 16;
  const Words rounded = (bits + 0x7FFF + (upper & 1)) >> 16, quiet = upper | 0x40;
  return __m256i(__builtin_convertvector(x == x ? rounded : quiet, Halves));
}

// sum + the products of each pair, the second one's first; each step is rounded once.
template <class V>
FASTRNN_EMULATED __m512 pair_products(__m512 sum, V a, V b) {
  constexpr std::uint32_t upper = 0xFFFF0000u;
  for (int part = 1; part >= 0; --part) {
    const __m512 x = __m512(flushed(part ? Words(a) & upper : Words(a) << 16));
    const __m512 y = __m512(flushed(part ? Words(b) & upper : Words(b) << 16));
    sum = __m512(flushed(Words(sum)));
    for (int i = 0; i < 16; ++i) sum[i] = __builtin_fmaf(x[i], y[i], sum[i]);
  }
  return __m512(flushed(Words(sum)));
}

#undef FASTRNN_EMULATED

}  // namespace fastrnn::emulated

#define _mm_maskz_loadu_epi8 fastrnn::emulated::load_bytes
#define _mm_test_epi8_mask fastrnn::emulated::common
#define _mm256_maskz_loadu_epi16 fastrnn::emulated::load_halves
#define _mm256_mask_storeu_epi16 fastrnn::emulated::store_halves
#define _mm256_cmpge_epu32_mask fastrnn::emulated::reach
#define _mm512_loadu_si512 fastrnn::emulated::load_words
#define _mm512_maskz_loadu_ps fastrnn::emulated::load
#define _mm512_maskz_loadu_pd fastrnn::emulated::load
#define _mm512_mask_storeu_ps fastrnn::emulated::store
#define _mm512_mask_storeu_pd fastrnn::emulated::store
#define _mm512_stream_si512 fastrnn::emulated::stream
#define _mm512_maskz_min_ps(all, a, b) fastrnn::emulated::smaller(a, b)
#define _mm512_maskz_min_pd(all, a, b) fastrnn::emulated::smaller(a, b)
#define _mm512_maskz_max_ps(all, a, b) fastrnn::emulated::larger(a, b)
#define _mm512_maskz_max_pd(all, a, b) fastrnn::emulated::larger(a, b)
#define _mm512_mask_blend_ps fastrnn::emulated::blend
#define _mm512_mask_blend_pd fastrnn::emulated::blend
#define _mm512_set1_epi32 fastrnn::emulated::every
#define _mm512_cmpge_epu32_mask fastrnn::emulated::reach
#define _mm512_maskz_mul_epu32(all, a, b) fastrnn::emulated::multiply(a, b)
#define _mm512_cvtneps_pbh fastrnn::emulated::narrow
#define _mm512_dpbf16_ps fastrnn::emulated::pair_products
