// A layer's weights in the order the forward pass streams them.
#pragma once

#include "gemm_cpu.h"
#include "workspace.h"

namespace fastrnn::FASTRNN_ISA {

template <int N>
constexpr int at_least_one = N > 0 ? N : 1;

// A panel of a product holds `units` vectors of hidden units, all their gates together:
// column (unit u, gate g) is vector u * gates + g. So a tile ends with every gate of its units.
template <int Gates>
constexpr int panel_units = Gates <= 2 ? 2 : 1;

template <class T, class Cell>
struct PackedWeights {
  using O = Operand<T>;
  static constexpr int G = Cell::gates;
  static constexpr int first = Cell::operand_gates, last = G - first;  // gates of each product
  static constexpr Index w = width<T>;

  static constexpr int projection_vectors = 2;  // of a panel of weight_hr

  // I is 0 without a projection of the input, P without one of h.
  PackedWeights(Arena& arena, Index I, Index H, Index P = 0) : I(I), H(H), P(P) {
    const Index width_h = padded<T>(P ? P : H);
    ih = arena.take<O>(gate_vectors<G>() * w * padded<T>(I));
    last_gates = arena.take<O>(gate_vectors<last>() * w * width_h);
    if constexpr (first > 0) first_gates = arena.take<O>(gate_vectors<first>() * w * width_h);
    if (P) projection = arena.take<O>(panel_size<T, projection_vectors>(P, H));
  }

  // This thread's share of packing weight_ih [G*H, I], weight_hh [G*H, H] (or [G*H, P]) and
  // weight_hr [P, H], but those that are null.
  void pack(const Team& team, const T* weight_ih, const T* weight_hh,
            const T* weight_hr = nullptr) const {
    const Index width_h = P ? P : H;
    if (weight_ih) pack_gates<G>(team, weight_ih, I, ih);
    if (weight_hh) {
      if constexpr (first > 0) pack_gates<first>(team, weight_hh, width_h, first_gates);
      pack_gates<last>(team, weight_hh + first * H * width_h, width_h, last_gates);
    }
    if (weight_hr) pack_transposed<T, projection_vectors>(team, weight_hr, P, H, projection);
  }

  // One panel of weight [Gates*H, k].
  template <int Gates>
  void pack_panel(const T* weight, Index k, Index panel, O* here) const {
    constexpr int NV = Gates * panel_units<Gates>;
    for (Index v = panel * NV; v < (panel + 1) * NV; ++v) pack_vector<Gates>(weight, k, v, here);
  }
  template <int Gates>
  static Index panel_numbers(Index k) {
    return panel_size<T, Gates * panel_units<Gates>>(1, k);
  }

  const Index I, H, P;
  O *ih, *last_gates, *first_gates = nullptr, *projection = nullptr;

 private:
  template <int Gates>
  Index gate_vectors() const {
    constexpr int units = panel_units<Gates>;
    return ceil_div(H, units * w) * units * Gates;
  }

  // weight [Gates*H, k] to gate-interleaved panels.
  template <int Gates>
  void pack_gates(const Team& team, const T* weight, Index k, O* packed) const {
    constexpr int NV = Gates * panel_units<Gates>;
    const Index vectors = gate_vectors<Gates>();
    for (Index v = team.begin(vectors); v < team.end(vectors); ++v)
      pack_vector<Gates>(weight, k, v, packed + v / NV * panel_numbers<Gates>(k));
  }

  // Vector v of all panels, into its own.
  template <int Gates>
  void pack_vector(const T* weight, Index k, Index v, O* panel) const {
    constexpr int units = panel_units<Gates>, NV = Gates * units, part = part_vectors<NV>;
    const Index unit = (v / NV * units + v % NV / Gates) * w, gate = v % Gates;
    pack_columns_transposed(
        weight + (gate * H + unit) * k, k, H - unit, k,
        panel + (v % NV - v % part) * padded<T>(k) * w + v % part * w * depth<T>, part * w);
  }
};

}  // namespace fastrnn::FASTRNN_ISA
