// The random words of zoneout's masks, as `random_words` of fastrnn/regularisers.py defines them.
#pragma once

#include <cstdint>

#include "inline.h"

namespace fastrnn::FASTRNN_ISA {

// Philox-4x32-10 (Salmon et al. 2011, section 4.3).
FASTRNN_INLINE void philox(std::uint32_t (&counter)[4], std::uint64_t key) {
  std::uint32_t low = std::uint32_t(key), high = std::uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t x = std::uint64_t(counter[0]) * 0xD2511F53u;
    const std::uint64_t y = std::uint64_t(counter[2]) * 0xCD9E8D57u;
    counter[0] = std::uint32_t(y >> 32) ^ counter[1] ^ low;
    counter[2] = std::uint32_t(x >> 32) ^ counter[3] ^ high;
    counter[1] = std::uint32_t(y);
    counter[3] = std::uint32_t(x);
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
}

// Of a unit of a state, at a step of a sequence.
FASTRNN_INLINE std::uint32_t random_word(std::int64_t seed, int state, std::int64_t step,
                                         std::int64_t sequence, std::int64_t unit) {
  std::uint32_t words[4] = {std::uint32_t(unit / 4), std::uint32_t(sequence), std::uint32_t(step),
                            std::uint32_t(state)};
  philox(words, std::uint64_t(seed));
  // Chosen, not indexed: an index would put the words into the device's local memory.
  const std::uint32_t first = unit & 1 ? words[1] : words[0];
  const std::uint32_t second = unit & 1 ? words[3] : words[2];
  return unit & 2 ? second : first;
}

}  // namespace fastrnn::FASTRNN_ISA
