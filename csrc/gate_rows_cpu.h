// What the gate maths of a step's rows reads and writes, for each loop. A tile's end works on a
// copy of its own: a masked store may change whatever is only pointed at, which the compiler would
// then load again for every vector of units.
#pragma once

#include "cells.h"
#include "packing_cpu.h"

namespace fastrnn::FASTRNN_ISA {

// Pointers are to a segment's first row; r counts from it.
template <class T, class Cell>
struct ForwardRows {
  using C = Value<T>;
  using V = Vec<C>;
  static constexpr int G = Cell::gates, S = Cell::states;
  static constexpr Index w = V::width;
  // The states from this one on have a buffer of their own, never rounded.
  static constexpr int carried = rounds<T> ? 0 : 1;

  Index H, batch, chunk_rows, reserve_stride, cells_stride;
  const C* projected;  // [units / w][chunk_rows][G][w], or null: `input` is [rows][G*H]
  const T *input, *prev_h;
  bool reset;
  C* carry;  // [S - carried][batch][H]
  T *output, *reserve, *cells;

  // Gates from `gate` on of row r's projection.
  template <int Count>
  FASTRNN_INLINE void load_projected(Index r, Index unit, Index lanes, int gate, V* x) const {
    if (projected)
      load_blocks<Count>(projected + ((unit / w * chunk_rows + r) * G + gate) * w, w, w, x);
    else
      load_blocks<Count>(input + (r * G + gate) * H + unit, H, lanes, x);
  }

  FASTRNN_INLINE void load_previous(Index r, Index unit, Index lanes, V* prev) const {
    for (int i = 0; i < S; ++i)
      if (i < carried)
        prev[i] = V::load(prev_h + r * H + unit, lanes);
      else
        prev[i] = V::load(carry_of(i, r) + unit, reset ? 0 : lanes);
  }

  FASTRNN_INLINE void store(Index r, Index unit, Index lanes, const V* next) const {
    next[0].store(output + r * H + unit, lanes);
    for (int i = carried; i < S; ++i) next[i].store(carry_of(i, r) + unit, lanes);
    for (int i = 1; i < S && cells; ++i)
      next[i].store(cells + (i - 1) * cells_stride + r * H + unit, lanes);
  }

  FASTRNN_INLINE C* carry_of(int i, Index r) const {
    return carry + ((i - carried) * batch + r) * H;
  }
};

template <class T, class Cell>
struct BackwardRows {
  using C = Value<T>;
  using V = Vec<C>;
  static constexpr int G = Cell::gates, S = Cell::states, R = Cell::reserve;

  Index H, batch, reserve_stride, cells_stride;
  const T *reserve, *output, *cells, *grad_output, *grad_cells;
  const T* previous[S];
  bool reset;
  C* carry;  // [S][batch][H]
  T *grad_x, *grad_h;

  // `grad`: of h, but for the output's own.
  FASTRNN_INLINE void load(Index r, Index unit, Index lanes, V grad, V* kept, V* prev, V* next,
                           V* grad_next) const {
    const Index place = r * H + unit;
    load_blocks<R>(reserve + r * reserve_stride + unit, H, lanes, kept);
    prev[0] = V::load(previous[0] + place, lanes);
    next[0] = V::load(output + place, lanes);
    grad_next[0] = grad_output ? grad + V::load(grad_output + place, lanes) : grad;
    for (int i = 1; i < S; ++i) {
      const Index of_cell = (i - 1) * cells_stride + place;
      prev[i] = V::load(previous[i] + place, lanes);
      next[i] = V::load(cells + of_cell, lanes);
      grad_next[i] = V::load(carry_of(i, r) + unit, lanes);
      if (grad_cells) grad_next[i] = grad_next[i] + V::load(grad_cells + of_cell, lanes);
    }
  }

  FASTRNN_INLINE void store(Index r, Index unit, Index lanes, const V* x, const V* h,
                            const V* back) const {
    store_blocks<G>(x, H, lanes, grad_x + r * G * H + unit);
    if constexpr (!shared_gradients<Cell>) store_blocks<G>(h, H, lanes, grad_h + r * G * H + unit);
    for (int i = 0; i < S; ++i) back[i].store(carry_of(i, r) + unit, lanes);
  }

  FASTRNN_INLINE C* carry_of(int i, Index r) const { return carry + (i * batch + r) * H; }
};

}  // namespace fastrnn::FASTRNN_ISA
