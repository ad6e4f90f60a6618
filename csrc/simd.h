// Vectors as wide as the registers of this unit's instruction set.
#pragma once

#include <type_traits>

#include "registers.h"

namespace fastrnn::FASTRNN_ISA {

// A bit for each lane of a vector; as wide as what a register is filled with in one load.
#ifdef __AVX512F__
using Lanes = std::uint16_t;
#else
using Lanes = std::uint32_t;
#endif

template <class T>
struct Vec {
  using Register = typename Constants<T>::Register;
  // In memory: of T's type, so that a store is known to leave pointers and sizes as they are.
  typedef T Unaligned __attribute__((vector_size(vector_bytes), aligned(alignof(T))));
  static constexpr int width = vector_bytes / sizeof(T);

  Register v;

  FASTRNN_INLINE Vec() {}
  FASTRNN_INLINE Vec(Register r) : v(r) {}
  FASTRNN_INLINE Vec(T s) : v(s - Register{}) {}  // s - 0 keeps the sign of zero

  static FASTRNN_INLINE Vec load(const T* p) {
    return Register(*reinterpret_cast<const Unaligned*>(p));
  }
  FASTRNN_INLINE void store(T* p) const { *reinterpret_cast<Unaligned*>(p) = v; }
  // Past the caches, if the set can; p is aligned. `streamed` comes before others read it.
  FASTRNN_INLINE void stream(T* p) const {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), __m512i(v));
#elif defined(__AVX2__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), __m256i(v));
#else
    store(p);
#endif
  }
  static FASTRNN_INLINE void streamed() {
#ifdef __AVX2__
    _mm_sfence();
#endif
  }

  // The first n lanes only; a load leaves zeros in the others.
  static FASTRNN_INLINE Vec load(const T* p, Index n) {
    if (n >= width) return load(p);
    // A masked load of nothing from an address that is not mapped takes hundreds of cycles.
    if (n <= 0) return Vec(T(0));
#ifdef __AVX512F__
    if constexpr (sizeof(T) == 4)
      return Register(_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p));
    else
      return Register(_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p));
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
      return Register(_mm256_maskload_ps(p, all_of_first(n)));
    else
      return Register(_mm256_maskload_pd(p, all_of_first(n)));
#else
    Vec r(T(0));
    for (Index i = 0; i < n; ++i) r.v[i] = p[i];
    return r;
#endif
  }
  FASTRNN_INLINE void store(T* p, Index n) const {
    if (n >= width) return store(p);
#ifdef __AVX512F__
    if constexpr (sizeof(T) == 4)
      _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), __m512(v));
    else
      _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), __m512d(v));
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
      _mm256_maskstore_ps(p, all_of_first(n), __m256(v));
    else
      _mm256_maskstore_pd(p, all_of_first(n), __m256d(v));
#else
    for (Index i = 0; i < n; ++i) p[i] = v[i];
#endif
  }

  // Of numbers that are stored as bfloat16.
  static FASTRNN_INLINE Vec load(const Bf16* p) { return Vec(widen(load_halves(p))); }
  static FASTRNN_INLINE Vec load(const Bf16* p, Index n) { return Vec(widen(load_halves(p, n))); }
  FASTRNN_INLINE void store(Bf16* p) const { store_halves(narrow(v), p); }
  FASTRNN_INLINE void store(Bf16* p, Index n) const { store_halves(narrow(v), p, n); }

  // A bit for each of the first n lanes, n >= 1.
  static FASTRNN_INLINE Lanes first(Index n) {
    return Lanes((2u << (n < width ? n - 1 : width - 1)) - 1);
  }
  // A bit for each of the first n bytes at p, n >= 1, that is not 0.
  static FASTRNN_INLINE Lanes nonzero(const char* p, Index n) {
#ifdef __AVX512F__
    const __m128i bytes = _mm_maskz_loadu_epi8(first(n), p);
    return _mm_test_epi8_mask(bytes, bytes);
#else
#ifdef __AVX2__
    if (n >= width) {
      std::conditional_t<width == 8, std::uint64_t, std::uint32_t> bytes;
      __builtin_memcpy(&bytes, p, sizeof bytes);
      const __m128i zeros = _mm_cmpeq_epi8(_mm_cvtsi64_si128(std::int64_t(bytes)), __m128i{});
      return Lanes(~_mm_movemask_epi8(zeros)) & first(width);
    }
#endif
    Lanes bits = 0;
    for (int i = 0; i < width && i < n; ++i) bits |= Lanes((p[i] != 0) << i);
    return bits;
#endif
  }

  // A bit for each of a vector's first words that is at least `limit`.
  static FASTRNN_INLINE Lanes reach(const std::uint32_t* words, std::uint32_t limit) {
#ifdef __AVX512F__
    if constexpr (sizeof(T) == 4)
      return _mm512_cmpge_epu32_mask(_mm512_loadu_si512(words), _mm512_set1_epi32(int(limit)));
    else
      return _mm256_cmpge_epu32_mask(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)),
                                     _mm256_set1_epi32(int(limit)));
#else
    Lanes bits = 0;
    for (int i = 0; i < width; ++i) bits |= Lanes((words[i] >= limit) << i);
    return bits;
#endif
  }

#ifdef __AVX2__
  // All bits of each of the first n lanes, 0 <= n <= width.
  static FASTRNN_INLINE __m256i all_of_first(Index n) {
    static constexpr std::int32_t edge[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    const Index words = n * Index(sizeof(T)) / 4;
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(edge + 8 - words));
  }
#endif

  friend FASTRNN_INLINE Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend FASTRNN_INLINE Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend FASTRNN_INLINE Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend FASTRNN_INLINE Vec operator/(Vec a, Vec b) { return a.v / b.v; }
};

// The same lanes of `Count` blocks that are `stride` apart: a unit's gates in a row of all gates.
template <int Count, class Stored, class T>
FASTRNN_INLINE void load_blocks(const Stored* first, Index stride, Index lanes, Vec<T>* values) {
#pragma GCC unroll 4
  for (int i = 0; i < Count; ++i) values[i] = Vec<T>::load(first + i * stride, lanes);
}

template <int Count, class Stored, class T>
FASTRNN_INLINE void store_blocks(const Vec<T>* values, Index stride, Index lanes, Stored* first) {
#pragma GCC unroll 4
  for (int i = 0; i < Count; ++i) values[i].store(first + i * stride, lanes);
}

// The smaller and the larger, lane by lane; b where one is NaN. Compilers make a comparison and a
// choice of `?:`. (Not _mm512_min_ps: gcc's reads a variable that has no value, and warns.)
template <class T>
FASTRNN_INLINE Vec<T> min(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return typename Vec<T>::Register(_mm512_maskz_min_ps(0xFFFF, __m512(a.v), __m512(b.v)));
  else
    return typename Vec<T>::Register(_mm512_maskz_min_pd(0xFF, __m512d(a.v), __m512d(b.v)));
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4)
    return typename Vec<T>::Register(_mm256_min_ps(__m256(a.v), __m256(b.v)));
  else
    return typename Vec<T>::Register(_mm256_min_pd(__m256d(a.v), __m256d(b.v)));
#else
  return a.v < b.v ? a.v : b.v;
#endif
}

template <class T>
FASTRNN_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return typename Vec<T>::Register(_mm512_maskz_max_ps(0xFFFF, __m512(a.v), __m512(b.v)));
  else
    return typename Vec<T>::Register(_mm512_maskz_max_pd(0xFF, __m512d(a.v), __m512d(b.v)));
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4)
    return typename Vec<T>::Register(_mm256_max_ps(__m256(a.v), __m256(b.v)));
  else
    return typename Vec<T>::Register(_mm256_max_pd(__m256d(a.v), __m256d(b.v)));
#else
  return a.v > b.v ? a.v : b.v;
#endif
}

// The larger; a where one is NaN.
struct Larger {
  template <class T>
  FASTRNN_INLINE Vec<T> operator()(Vec<T> a, Vec<T> b) const {
    return max(b, a);
  }
};

// a in the lanes whose bit is set, b in the others.
template <class T>
FASTRNN_INLINE Vec<T> choose(Lanes bits, Vec<T> a, Vec<T> b) {
#ifdef __AVX512F__
  if constexpr (sizeof(T) == 4)
    return typename Vec<T>::Register(_mm512_mask_blend_ps(bits, __m512(b.v), __m512(a.v)));
  else
    return
        typename Vec<T>::Register(_mm512_mask_blend_pd(__mmask8(bits), __m512d(b.v), __m512d(a.v)));
#else
  using C = Constants<T>;
  typename C::Bits to_sign;
  for (int i = 0; i < Vec<T>::width; ++i) to_sign[i] = int(8 * sizeof(T)) - 1 - i;
  return (typename C::Bits{} + typename C::Whole(bits)) << to_sign < 0 ? a.v : b.v;
#endif
}

// x within [low, high]; NaN stays.
template <class T>
FASTRNN_INLINE Vec<T> clamp(Vec<T> x, T low, T high) {
  return max(Vec<T>(low), min(Vec<T>(high), x));
}

template <class T>
FASTRNN_INLINE Vec<T> select_positive(Vec<T> condition, Vec<T> a, Vec<T> b) {
  return condition.v > typename Vec<T>::Register{} ? a.v : b.v;
}

// As torch's slope of relu, NaN lets x through.
template <class T>
FASTRNN_INLINE Vec<T> where_positive(Vec<T> condition, Vec<T> x) {
  return condition.v <= typename Vec<T>::Register{} ? typename Vec<T>::Register{} : x.v;
}

}  // namespace fastrnn::FASTRNN_ISA
