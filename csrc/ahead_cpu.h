// Memory asked for before it is needed.
#pragma once

#include "packing_cpu.h"

namespace fastrnn::FASTRNN_ISA {

// Rows of several tensors that will be needed, asked for a few cache lines at a time: many at once
// hold up what is needed now.
template <class T>
class Ahead {
  static constexpr Index line = 64 / sizeof(T);

 public:
  void add(const T* rows, Index ld, Index count, Index width) {
    row_lines_ += ceil_div(width, line);
    if (ld == width) {  // no gaps: as rows of four lines
      count = ceil_div(count * width, 4 * line);
      ld = width = 4 * line;
    }
    parts_[count_++] = {rows, ld, width};
    rounds_ = larger(rounds_, count);
  }

  // As many lines as a row of every tensor has.
  void ask() {
    for (Index lines = row_lines_; lines > 0 && rounds_ > 0;) {
      Part& part = parts_[next_];
      for (Index c = 0; c < part.width; c += line, --lines) __builtin_prefetch(part.row + c);
      part.row += part.ld;
      if (++next_ == count_) next_ = 0, --rounds_;
    }
  }

 private:
  struct Part {
    const T* row;
    Index ld, width;
  } parts_[8];
  int count_ = 0, next_ = 0;
  Index row_lines_ = 0, rounds_ = 0;
};

}  // namespace fastrnn::FASTRNN_ISA
