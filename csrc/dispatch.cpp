#include "dispatch.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

namespace fastrnn {

const InstructionSet& instruction_set() {
#ifdef FASTRNN_HAVE_AVX512
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
#define FASTRNN_SET(isa, supported)                                                      \
  {                                                                                      \
    #isa, supported, isa::kernels, isa::row_kernels, isa::cross_entropy, isa::attention, \
        isa::dropout, isa::multiply_adds, isa::read_memory                               \
  }
  static const InstructionSet sets[] = {
#ifdef FASTRNN_HAVE_AVX512_BF16
      FASTRNN_SET(avx512_bf16, has_avx512 && __builtin_cpu_supports("avx512bf16")),
#endif
#ifdef FASTRNN_HAVE_AVX512
      FASTRNN_SET(avx512, has_avx512),
#endif
#ifdef FASTRNN_HAVE_AVX2
      FASTRNN_SET(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")),
#endif
      FASTRNN_SET(portable, true),
  };
#undef FASTRNN_SET
  static const InstructionSet& chosen = []() -> const InstructionSet& {
    const char* asked = std::getenv("FASTRNN_CPU");
    std::string names;
    for (const InstructionSet& set : sets) {
      if (!set.supported) continue;
      if (!asked || !*asked || set.name == std::string(asked)) return set;
      names += names.empty() ? set.name : std::string(", ") + set.name;
    }
    throw std::runtime_error("FASTRNN_CPU must be one of " + names + " on this processor, got " +
                             asked);
  }();
  return chosen;
}

namespace {

constexpr std::int64_t kept_bytes = std::int64_t(256) << 20;
constexpr std::int64_t large_page = 2 << 20;
constexpr std::align_val_t alignment{large_page};

void ask(char* memory, std::int64_t bytes) {
#ifdef MADV_HUGEPAGE
  madvise(memory, std::size_t(bytes), MADV_HUGEPAGE);
#endif
}

struct Delete {
  void operator()(char* p) const { ::operator delete(p, alignment); }
};
thread_local std::unique_ptr<char, Delete> held;
thread_local std::int64_t held_bytes = 0;

}  // namespace

Scratch::Scratch(std::int64_t bytes) : bytes_(bytes) {
  if (bytes <= held_bytes) return;
  held.reset();
  held_bytes = 0;
  held.reset(static_cast<char*>(::operator new(bytes, alignment)));
  // Panels of megabytes are streamed through once a step: 5% at H = 1500.
  ask(held.get(), bytes);
  held_bytes = bytes;
}

Scratch::~Scratch() {
  if (bytes_ <= kept_bytes) return;
  held.reset();
  held_bytes = 0;
}

void ask_for_large_pages(const Tensor& result) {
  const std::int64_t bytes = result.numel() * std::int64_t(result.element_size());
  if (bytes < 2 * large_page) return;
  char* const memory = static_cast<char*>(result.mutable_data_ptr());
  const std::int64_t before =
      -std::int64_t(reinterpret_cast<std::uintptr_t>(memory)) & (large_page - 1);
  ask(memory + before, (bytes - before) / large_page * large_page);
}

char* Scratch::data() const { return held.get(); }

}  // namespace fastrnn
