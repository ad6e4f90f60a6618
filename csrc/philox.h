// Philox-4x32-10 (Salmon et al. 2011, section 4.3): random words that are a pure function of where
// they are used. `fastrnn/regularisers.py` holds the same in torch.
#pragma once

#include <cstdint>

#include "inline.h"

namespace fastrnn::FASTRNN_ISA {

// A counter's words become random ones under the key `seed`. Each is the lower half of 64 bits, or
// of each lane of a vector of them; product(x, y) multiplies lower halves.
template <class Wide, class Product>
FASTRNN_INLINE void philox_rounds(std::uint64_t seed, Wide& a, Wide& b, Wide& c, Wide& d,
                                  const Product& product) {
  std::uint32_t m = std::uint32_t(seed), n = std::uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round, m += 0x9E3779B9u, n += 0xBB67AE85u) {
    const Wide x = product(a, 0xD2511F53u), y = product(c, 0xCD9E8D57u);
    a = (y >> 32) ^ b ^ m, b = y;
    c = (x >> 32) ^ d ^ n, d = x;
  }
}

struct HalfProduct {
  FASTRNN_INLINE std::uint64_t operator()(std::uint64_t x, std::uint32_t y) const {
    return (x & 0xFFFFFFFFu) * y;
  }
};

// The words of the counter (quad, sequence, step, state), in the order of the units they are for.
FASTRNN_INLINE void philox(std::uint64_t seed, std::uint32_t quad, std::uint32_t sequence,
                           std::uint32_t step, std::uint32_t state, std::uint32_t* out) {
  std::uint64_t a = quad, b = sequence, c = step, d = state;
  philox_rounds(seed, a, b, c, d, HalfProduct());
  out[0] = std::uint32_t(a), out[1] = std::uint32_t(b);
  out[2] = std::uint32_t(c), out[3] = std::uint32_t(d);
}

}  // namespace fastrnn::FASTRNN_ISA
