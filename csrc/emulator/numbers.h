// 16-bit floating point in software, rounded to nearest even as the device does.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulator {

struct BFloat16 {
  std::uint16_t bits;
};
struct Half {
  std::uint16_t bits;
};

inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float widen(BFloat16 x) { return float_of(std::uint32_t(x.bits) << 16); }

inline void narrow(float x, BFloat16* to) {
  const std::uint32_t bits = bits_of(x);
  if (std::isnan(x))
    *to = {0x7FFF};
  else
    *to = {std::uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

inline float widen(Half x) {
  const std::uint32_t sign = std::uint32_t(x.bits & 0x8000) << 16;
  const int exponent = x.bits >> 10 & 31;
  const std::uint32_t mantissa = x.bits & 0x3FF;
  if (exponent == 31) return float_of(sign | 0x7F800000 | mantissa << 13);
  const float value = exponent ? std::ldexp(float(mantissa | 0x400), exponent - 25)
                               : std::ldexp(float(mantissa), -24);
  return sign ? -value : value;
}

inline void narrow(float x, Half* to) {
  const std::uint16_t sign = std::uint16_t(bits_of(x) >> 16 & 0x8000);
  const float size = std::fabs(x);
  if (std::isnan(x)) {
    *to = {0x7FFF};
  } else if (size >= 65520.f) {
    *to = {std::uint16_t(sign | 0x7C00)};
  } else if (size < 0x1p-14f) {  // subnormal: multiples of 2^-24
    *to = {std::uint16_t(sign | std::uint16_t(std::nearbyint(size * 0x1p24f)))};
  } else {
    const std::uint32_t bits = bits_of(size);
    const std::uint32_t rounded = bits + 0xFFF + (bits >> 13 & 1);
    *to = {std::uint16_t(sign | ((rounded >> 13) - (112 << 10)))};
  }
}

}  // namespace emulator
