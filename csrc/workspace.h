// Cuts one block of memory into arrays; run over null it only counts.
#pragma once

#include "simd.h"

namespace fastrnn::FASTRNN_ISA {

class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}

  template <class T>
  T* take(Index count) {
    char* const here = base_ ? base_ + used_ : nullptr;
    used_ += (count * Index(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(here);
  }

  Index bytes() const { return used_; }

 private:
  char* const base_;
  Index used_ = 0;
};

}  // namespace fastrnn::FASTRNN_ISA
