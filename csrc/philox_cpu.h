// Random words that are a pure function of where they are used; `philox` and `random_words` of
// fastrnn/regularisers.py.
#pragma once

#include <cstdint>

#include "simd.h"

namespace fastrnn::FASTRNN_ISA {

// Philox-4x32-10 (Salmon et al. 2011, section 4.3) at the counters (quad, sequence, step, 0) for
// `count` quads from the first on: out [count, 4].
inline void random_words(std::uint64_t seed, std::uint32_t sequence, std::uint32_t step,
                         std::uint32_t quad, Index count, std::uint32_t* out) {
  for (Index i = 0; i < count; ++i) {
    std::uint32_t a = quad + std::uint32_t(i), b = sequence, c = step, d = 0;
    std::uint32_t low = std::uint32_t(seed), high = std::uint32_t(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t x = std::uint64_t(a) * 0xD2511F53u, y = std::uint64_t(c) * 0xCD9E8D57u;
      a = std::uint32_t(y >> 32) ^ b ^ low, b = std::uint32_t(y);
      c = std::uint32_t(x >> 32) ^ d ^ high, d = std::uint32_t(x);
      low += 0x9E3779B9u, high += 0xBB67AE85u;
    }
    out[4 * i] = a, out[4 * i + 1] = b, out[4 * i + 2] = c, out[4 * i + 3] = d;
  }
}

}  // namespace fastrnn::FASTRNN_ISA
