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
  std::uint32_t a[Count], b[Count], c[Count], d[Count];
  for (int i = 0; i < Count; ++i) a[i] = quad + i, b[i] = sequence, c[i] = step, d[i] = state;
  std::uint32_t m = std::uint32_t(seed), n = std::uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round, m += 0x9E3779B9u, n += 0xBB67AE85u)
    for (int i = 0; i < Count; ++i) {
      const std::uint64_t x = std::uint64_t(a[i]) * 0xD2511F53u;
      const std::uint64_t y = std::uint64_t(c[i]) * 0xCD9E8D57u;
      a[i] = std::uint32_t(y >> 32) ^ b[i] ^ m, b[i] = std::uint32_t(y);
      c[i] = std::uint32_t(x >> 32) ^ d[i] ^ n, d[i] = std::uint32_t(x);
    }
  for (int i = 0; i < Count; ++i)
    out[4 * i] = a[i], out[4 * i + 1] = b[i], out[4 * i + 2] = c[i], out[4 * i + 3] = d[i];
}

}  // namespace fastrnn::FASTRNN_ISA
