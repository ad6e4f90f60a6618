// A kernel's memory: one block, cut into arrays.
#pragma once

#include "kernels_cpu.h"
#include "simd.h"

namespace fastrnn::FASTRNN_ISA {

// Over null it only counts.
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

template <class Loop, class Arguments>
std::int64_t loop_bytes(const Arguments& arguments, int threads) {
  return Loop(arguments, nullptr, threads).bytes();
}

template <class Loop, class Arguments>
void run_loop(const Team& team, const Arguments& arguments, char* workspace) {
  Loop(arguments, workspace, team.size).run(team);
}

// A class that takes its arrays from an Arena in its constructor, as a kernel.
template <class Loop, class Arguments>
constexpr Kernel<Arguments> kernel = {loop_bytes<Loop, Arguments>, run_loop<Loop, Arguments>};

}  // namespace fastrnn::FASTRNN_ISA
