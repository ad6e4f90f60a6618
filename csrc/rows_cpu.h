// What recurrences are made of that need whole rows of a step at once, layer normalisation and the
// projection of h: blocks of sequences, and a row's normalisation.
#pragma once

#include "activations_cpu.h"
#include "cells.h"
#include "gemm_cpu.h"
#include "kernels_cpu.h"

namespace fastrnn::FASTRNN_ISA {

// The sequences that are this thread's, in blocks. It takes them through all steps and waits for no
// other thread. Blocks do not depend on the number of threads: a tile's rows decide its last bit.
class SequenceBlocks {
  static constexpr int block_vectors = tile_rows<3> < tile_rows<4> ? 3 : 4;  // whose tiles are low

 public:
  SequenceBlocks(const Team& team, Index batch)
      : blocks_(batch),
        first_block(team.begin(blocks_.count)),
        last_block(team.end(blocks_.count)),
        begin(blocks_.start(first_block)),
        end(blocks_.start(last_block)) {}

  static Index blocks_of(Index batch) { return RowBlocks<block_vectors>(batch).count; }
  Index start(Index block) const { return blocks_.start(block); }

  // Calls of_sequence(sequence) for those of ours that begin anew in a step's segments.
  template <class OfSequence>
  void beginning_anew(const Segment* first, const Segment* last,
                      const OfSequence& of_sequence) const {
    for (const Segment* segment = first; segment < last; ++segment) {
      if (!segment->reset) continue;
      const Index stop = smaller(end, segment->sequence + segment->rows);
      for (Index s = larger(begin, segment->sequence); s < stop; ++s) of_sequence(s);
    }
  }

  // Of the step's `active` first sequences, ours: C = A B as in `product`; A's rows are by
  // sequence.
  template <class T, int NV, class Finish>
  void product(Index active, Index vectors, Index k, const T* a, Index lda, const T* packed,
               const Finish& finish) const {
    static_assert(tile_rows<NV> >= tile_rows<block_vectors>);
    constexpr Index panel_row = NV * width<T>;
    alignas(64) T tile[tile_rows<block_vectors> * panel_row];
    const Slices<T> slices(k);
    for (Index panel = 0; panel < ceil_div(vectors, NV); ++panel) {
      const int used = vectors_used<NV>(vectors - panel * NV);
      for (Index block = first_block; block < last_block; ++block) {
        const Index sequence = start(block), rows = smaller(start(block + 1), active) - sequence;
        if (rows <= 0) break;
        for (Index i = 0; i < slices.count; ++i)
          slice_product<T, NV>(slices, i, used, rows, a + sequence * lda, lda,
                               packed + panel * k * panel_row, tile);
        finish(tile, sequence, rows, panel);
      }
    }
  }

 private:
  const RowBlocks<block_vectors> blocks_;

 public:
  const Index first_block, last_block;  // blocks
  const Index begin, end;               // sequences
};

// Where a row's reserve has what, in slots of H: the cell's own come first.
template <class Cell>
struct Slots {
  explicit Slots(const Sequence& s)
      : states(s.zoneout.on || s.projected ? Cell::states : 0),
        h(Cell::reserve + states),
        x(h + Cell::gates),
        count(s.gains ? x + Cell::gates : h) {}
  const Index states;  // how many states follow
  const Index h, x;    // layer normalisation's operands, G slots each
  const Index count;
};

// Where the states before each row are: before[i] [rows] of state i. `zeros` [H] are made for those
// that begin anew.
template <class T, int S>
void find_states_before(const Team& team, const Backward& s, T* zeros, const T** const* before) {
  const Index H = s.hidden_size, P = s.projected ? s.projected : H;
  if (team.rank == 0) clear(team.alone(), H, zeros);
  const Segment* const end = s.segments + s.step_begin[s.steps];
  for (const Segment* segment = s.segments; segment < end; ++segment)
    for (Index r = team.begin(segment->rows); r < team.end(segment->rows); ++r)
      for (int i = 0; i < S; ++i) {
        const T* from = zeros;
        if (segment->prev < 0)
          from = static_cast<const T*>(s.state) + (i * s.batch + segment->sequence + r) * H;
        else if (i == 0)
          from = static_cast<const T*>(s.output) + (segment->prev + r) * P;
        else
          from = static_cast<const T*>(s.cells) + ((i - 1) * s.rows + segment->prev + r) * H;
        before[i][segment->row + r] = segment->reset ? zeros : from;
      }
}

// The sum of term(column, lanes) over a row's vectors. Four sums take turns: one would wait for
// every addition.
template <class T, class Term>
FASTRNN_INLINE Vec<T> row_sum(Index n, const Term& term) {
  constexpr Index w = width<T>;
  Vec<T> sums[4] = {T(0), T(0), T(0), T(0)};
  Index i = 0;
  for (; i + 4 * w <= n; i += 4 * w)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sums[j] = sums[j] + term(i + j * w, w);
  for (; i < n; i += w) sums[0] = sums[0] + term(i, n - i);
  return Vec<T>(across<T>((sums[0] + sums[1]) + (sums[2] + sums[3]), Add{}));
}

// A row's mean, and 1 / sqrt(variance + eps), in every lane.
template <class T>
struct Moments {
  static constexpr double eps = 1e-5;
  using V = Vec<T>;

  Moments(const T* x, Index n) {
    mean = row_sum<T>(n, [&](Index i, Index lanes) { return V::load(x + i, lanes); }) / V(T(n));
    T means[width<T>];  // masked where the row ends
    mean.store(means);
    const V squares = row_sum<T>(n, [&](Index i, Index lanes) {
      const V deviation = V::load(x + i, lanes) - V::load(means, lanes);
      return deviation * deviation;
    });
    scale = V(T(1 / __builtin_sqrt(double(squares.v[0]) / double(n) + eps)));
  }

  FASTRNN_INLINE V normalised(V x) const { return (x - mean) * scale; }

  V mean, scale;
};

// The gradient of y = gain * normalised(x) + bias: out [n] from grad_y [n], which may be the same
// array. To grad_gain and grad_bias (null: to none) this row's are added.
template <class T>
void norm_backward(const Moments<T>& moments, const T* x, const T* gain, const T* grad_y, Index n,
                   T* out, T* grad_gain, T* grad_bias) {
  using V = Vec<T>;
  constexpr Index w = width<T>;
  V along(T(0));
  const V sum = row_sum<T>(n, [&](Index i, Index lanes) {
    const V grad = V::load(grad_y + i, lanes), unit = moments.normalised(V::load(x + i, lanes));
    const V scaled = grad * V::load(gain + i, lanes);
    along = along + scaled * unit;
    (V::load(grad_gain + i, lanes) + grad * unit).store(grad_gain + i, lanes);
    if (grad_bias) (V::load(grad_bias + i, lanes) + grad).store(grad_bias + i, lanes);
    return scaled;
  });
  const V count = V(T(n)), mean = sum / count, slope = V(across<T>(along, Add{})) / count;
  for (Index i = 0; i < n; i += w) {
    const V scaled = V::load(grad_y + i, n - i) * V::load(gain + i, n - i);
    const V unit = moments.normalised(V::load(x + i, n - i));
    (moments.scale * (scaled - mean - unit * slope)).store(out + i, n - i);
  }
}

}  // namespace fastrnn::FASTRNN_ISA
