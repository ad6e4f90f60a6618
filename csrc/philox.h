// Philox-4x32-10 (Salmon et al. 2011, section 4.3): random words that are a pure function of where
// they are used. `fastrnn/regularisers.py` holds the same in torch.
#pragma once

#include <cstdint>

#include "inline.h"

namespace fastrnn::FASTRNN_ISA {

// The words of `Count` counters (quad + i, sequence, step, state) under the key `seed`, in the
// order of the units they are for: out[4 * Count].
template <int Count>
FASTRNN_INLINE void philox(std::uint64_t seed, std::uint32_t quad, std::uint32_t sequence,
                           std::uint32_t step, std::uint32_t state, std::uint32_t* out) {
  for (int i = 0; i < Count; ++i) {
    std::uint32_t a = quad + i, b = sequence, c = step, d = state;
    std::uint32_t m = std::uint32_t(seed), n = std::uint32_t(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round, m += 0x9E3779B9u, n += 0xBB67AE85u) {
      const std::uint64_t x = std::uint64_t(a) * 0xD2511F53u, y = std::uint64_t(c) * 0xCD9E8D57u;
      a = std::uint32_t(y >> 32) ^ b ^ m, b = std::uint32_t(y);
      c = std::uint32_t(x >> 32) ^ d ^ n, d = std::uint32_t(x);
    }
    out[4 * i] = a, out[4 * i + 1] = b, out[4 * i + 2] = c, out[4 * i + 3] = d;
  }
}

}  // namespace fastrnn::FASTRNN_ISA
