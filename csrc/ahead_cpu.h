// Memory asked for before it is needed.
#pragma once

#include "packing_cpu.h"

namespace fastrnn::FASTRNN_ISA {

// Rows of several tensors that will be needed, asked for one at a time: many at once hold up what
// is needed now. The loops that ask are short, so that asking must take few instructions.
class Ahead {
 public:
  // Rows of `bytes`, `step` bytes apart.
  void add(const char* rows, Index step, Index count, Index bytes) {
    parts_[count_++] = {rows, step};
    bytes_ = larger(bytes_, bytes);
    rows_ = larger(rows_, count);
  }

  // A row of every tensor.
  void ask() {
    if (rows_ == 0) return;
    --rows_;
    for (Part* part = parts_; part < parts_ + count_; ++part) {
      const char* const row = part->row;
      part->row += part->step;
      __builtin_prefetch(row);
      __builtin_prefetch(row + line);
      for (Index i = 2 * line; i < bytes_; i += line) __builtin_prefetch(row + i);
    }
  }

 private:
  static constexpr Index line = 64;
  struct Part {
    const char* row;
    Index step;
  } parts_[8];
  int count_ = 0;
  Index bytes_ = 0, rows_ = 0;
};

}  // namespace fastrnn::FASTRNN_ISA
