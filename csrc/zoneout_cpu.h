// Zoneout on vectors of units (Krueger et al. 2016, eq. 3).
#pragma once

#include <cmath>

#include "kernels_cpu.h"
#include "philox_cpu.h"
#include "simd.h"

namespace fastrnn::FASTRNN_ISA {

// What the units from `unit` on keep of state `state`: 1 or 0 each, or in evaluation the rate.
template <class T>
Vec<T> kept_share(const Zoneout& zoneout, int state, Index step, Index sequence, Index unit) {
  constexpr int w = Vec<T>::width, quads = w < 4 ? 1 : w / 4;
  const double rate = zoneout.rates[state];
  if (!zoneout.drawn) return Vec<T>(T(rate));
  std::uint32_t words[4 * quads];
  if (zoneout.sequences) sequence = zoneout.sequences[sequence];
  philox<quads>(zoneout.seed, std::uint32_t(unit / 4), std::uint32_t(sequence), std::uint32_t(step),
                std::uint32_t(state), words);
  // Exact for every rate: none at 0, all at 1.
  const std::uint64_t below = std::uint64_t(std::nearbyint(rate * 0x1p32));
  if (below > 0xFFFFFFFFu) return Vec<T>(T(1));
  return choose(Vec<T>::reach(words + unit % 4, std::uint32_t(below)), Vec<T>(T(0)), Vec<T>(T(1)));
}

// The state after a step, of which `share` stays what it was. A unit that is drawn takes one of
// the two whole, whatever the other is.
template <class T>
FASTRNN_INLINE Vec<T> keep(const Zoneout& zoneout, Vec<T> share, Vec<T> prev, Vec<T> next) {
  if (zoneout.drawn) return select_positive(share, prev, next);
  return share * prev + (Vec<T>(T(1)) - share) * next;
}

}  // namespace fastrnn::FASTRNN_ISA
