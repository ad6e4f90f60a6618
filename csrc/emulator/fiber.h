// Contexts of execution that give way to each other by hand: one for every emulated thread.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulator {

#ifdef __x86_64__

extern "C" void emulator_switch(void** save, void* to);

// A suspended context is its stack pointer; what the calling convention keeps lies on its stack.
class Fiber {
 public:
  void start(unsigned char* stack, std::size_t bytes, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + bytes - 64);
    *--top = nullptr;  // the return address of entry, which never returns
    *--top = reinterpret_cast<void*>(entry);
    pointer_ = top - 6;  // rbp, rbx, r12 to r15
  }
  static void change(Fiber& from, Fiber& to) { emulator_switch(&from.pointer_, to.pointer_); }

 private:
  void* pointer_ = nullptr;
};

#else

class Fiber {
 public:
  void start(unsigned char* stack, std::size_t bytes, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  static void change(Fiber& from, Fiber& to) { swapcontext(&from.context_, &to.context_); }

 private:
  ucontext_t context_;
};

#endif

}  // namespace emulator
