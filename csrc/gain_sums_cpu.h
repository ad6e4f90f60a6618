// The gradients of a layer normalisation's gains and of the biases beside it: sums over all rows.
#pragma once

#include "team.h"
#include "workspace.h"

namespace fastrnn::FASTRNN_ISA {

// Sums of `size` numbers. Every block of sequences has its own, so that they do not depend on the
// number of threads: those of the last steps, and behind them those of all before, since a small
// term rounds against its own sum.
template <class T>
class GainSums {
 public:
  GainSums() = default;
  GainSums(Arena& arena, Index blocks, Index size)
      : size(size), blocks_(blocks), sums_(arena.take<T>(blocks * 2 * size)) {}

  // What a row's are added to.
  T* recent(Index block) const { return sums_ + block * 2 * size; }

  void clear(Index block) const {
    for (Index i = 0; i < 2 * size; ++i) recent(block)[i] = T(0);
  }

  // Recent ones join those of all steps before.
  void join(Index block) const {
    T *const here = recent(block), *const all = here + size;
    for (Index i = 0; i < size; ++i) all[i] += here[i], here[i] = T(0);
  }

  // This thread's share of them over all sequences, once all have joined: `count` of gains, then
  // one bias [GH] for both of the cell's or one for each. A null bias is not wanted.
  void store(const Team& team, T* gains, Index count, T* bias_ih, T* bias_hh, Index GH) const {
    const bool shared = size == count + GH;
    for (Index i = team.begin(size); i < team.end(size); ++i) {
      T sum(0);
      for (Index block = 0; block < blocks_; ++block) sum += recent(block)[size + i];
      const Index bias = i - count;
      const bool second = bias >= GH;
      if (bias < 0)
        gains[i] = sum;
      else if (bias_ih && !second)
        bias_ih[bias] = sum;
      if (bias >= 0 && bias_hh && second == !shared) bias_hh[bias - (second ? GH : 0)] = sum;
    }
  }

  Index size = 0;

 private:
  Index blocks_ = 0;
  T* sums_ = nullptr;
};

}  // namespace fastrnn::FASTRNN_ISA
