// Attention's tensors of bfloat16: the loops work on float copies of the open head.
#pragma once

#include "kernels_cpu.h"
#include "packing_cpu.h"
#include "workspace.h"

namespace fastrnn::FASTRNN_ISA {

// In place of a tensor of bfloat16, one head's [rows, width].
template <class T>
Heads copy_of_head(Arena& arena, Index rows, Index width) {
  return {arena.take<T>(rows * width), 0, 0, width};
}

// Rows `ld` apart to rows of float side by side.
inline void widen_rows(const Bf16* from, Index ld, Index rows, Index width, float* to) {
  for (Index r = 0; r < rows; ++r, from += ld, to += width)
    for (Index c = 0; c < width; c += Vec<float>::width)
      Vec<float>::load(from + c, width - c).store(to + c, width - c);
}

// And back.
inline void narrow_rows(const float* from, Index rows, Index width, Bf16* to, Index ld) {
  for (Index r = 0; r < rows; ++r, from += width, to += ld)
    for (Index c = 0; c < width; c += Vec<float>::width)
      Vec<float>::load(from + c, width - c).store(to + c, width - c);
}

}  // namespace fastrnn::FASTRNN_ISA
