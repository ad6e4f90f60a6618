// What the CPU kernels are given, and their entries in each instruction set's units.
#pragma once

#include <cstdint>

#include "attention_arguments.h"
#include "team.h"

namespace fastrnn {

// A run of sequences that take one step together and have their neighbours in time in one place.
struct Segment {
  std::int64_t row;       // first packed row
  std::int64_t sequence;  // first sequence, its row in the states
  std::int64_t rows;
  std::int64_t prev;  // packed row of the step before, or -1: the initial state
  std::int64_t next;  // packed row of the step after, or -1: this is the last step
  std::int64_t step;
  bool reset;       // zeros stand in for the states before this step
  bool next_reset;  // ... and before the step after
};

// Which units keep their value for a step, or how much of it.
struct Zoneout {
  bool on;
  double rates[2];                // of each state
  bool drawn;                     // masks from the seed, or their expectation
  std::uint64_t seed;             //
  const std::int64_t* sequences;  // [B], numbers that masks know the sequences by, or null
};

// One layer and direction. Arrays are contiguous and row-major, of the kernel's dtype.
struct Sequence {
  std::int64_t rows, batch, input_size, hidden_size;  // N, B, I, H
  const Segment* segments;                            // in the order of the steps
  const std::int64_t* step_begin;                     // [steps + 1], into segments
  std::int64_t steps;
  const void* input;      // [N, I], or its projection [N, G*H]
  const void* state;      // [S, B, H]
  const void* weight_ih;  // [G*H, I], or null without a projection
  const void* weight_hh;  // [G*H, H]
  const void* bias_ih;    // [G*H] or null
  const void* bias_hh;    // [G*H] or null
  bool resets;            // whether any segment has one
  Zoneout zoneout;
  std::int64_t projected;  // P, or 0: h is not projected; with it, H is P in what is said of h
  const void* weight_hr;   // [P, H] or null
  const void* gains;       // of layer normalisation: [G*H], [G*H], and an LSTM's [H], [H]; or null
  // Of padded layers that run at once (CellKernels): the steps that this one has done, and those of
  // the layer that makes its `input`, backwards its grad_output; or null.
  Progress* progress = nullptr;
  const Progress* source = nullptr;
};

struct Forward : Sequence {
  char* packed;   // what Weights made, in place of the weights, or null
  bool projects;  // whether the input is still to be projected
  void* output;   // [N, H]
  void* state_n;  // [S, B, H]
  void* cells;    // [S-1, N, H] or null
  // [N, slots*H] or null: R slots; with zoneout or a projection of h the S states they acted on;
  // with layer normalisation the projections of the state and of the input, G each.
  void* reserve;
};

// Packing alone; its workspace is the result.
struct Weights {
  std::int64_t input_size, hidden_size, projected;  // all that the size depends on
  const void *weight_ih = nullptr, *weight_hh = nullptr, *weight_hr = nullptr;
};

struct Backward : Sequence {
  const void* grad_output;   // [N, H] or null
  const void* grad_state_n;  // [S, B, H] or null
  const void* grad_cells;    // [S-1, N, H] or null
  const void* output;        // [N, H]
  const void* cells;         // [S-1, N, H]
  const void* reserve;       // as in Forward
  void* grad_input;          // [N, I] or null; without weight_ih [N, G*H], never null
  void* grad_state;          // [S, B, H], or (in CellKernels) null
  void* grad_weight_ih;      // [G*H, I] or null
  void* grad_weight_hh;      // [G*H, H] or null
  void* grad_bias_ih;        // [G*H] or null
  void* grad_bias_hh;        // [G*H] or null
  void* grad_weight_hr;      // [P, H] or null
  void* grad_gains;          // as `gains`, or null
};

// A kernel sizes its workspace first (bytes, 64-byte aligned), then every thread of a team runs it.
template <class Arguments>
struct Kernel {
  std::int64_t (*workspace)(const Arguments&, int threads);
  void (*run)(const Team&, const Arguments&, char* workspace);
};

struct LayerKernels {
  Kernel<Forward> forward;
  Kernel<Backward> backward;
};

struct CellKernels : LayerKernels {
  Kernel<Weights> pack;
};

// Linear layer, softmax and cross entropy together: hidden [M, K], weight [V, K]. A kernel of
// bfloat16 rounds what products multiply; its tensors are float.
struct CrossEntropy {
  std::int64_t rows, features, classes;  // M, K, V
  const void* hidden;                    // [M, K]
  const void* weight;                    // [V, K]
  const void* bias;                      // [V] or null
  const std::int64_t* target;            // [M]; a row whose target is ignore_index counts nothing
  std::int64_t ignore_index;
  double label_smoothing;
  double scale;       // of every row's loss: 1, or 1 / rows that count
  void* losses;       // [M], scaled
  void* grad_hidden;  // [M, K] or null: no gradients at all
  void* grad_weight;  // [V, K]
  void* grad_bias;    // [V] or null
};

// output = input * (scale where a word of its own is at most kept_to, else 0).
struct Dropout {
  std::int64_t count;
  const void* input;
  void* output;
  std::uint64_t seed;
  std::uint32_t kept_to;
  double scale;
};

struct AttentionKernels {
  Kernel<AttentionForward> forward;
  Kernel<AttentionBackward> backward;
};

// One translation unit per instruction set.
//   kernels        null for a cell that has none; `dtype_bytes` is 2 (bfloat16), 4 or 8 (double)
//   row_kernels    with layer normalisation or a projection of h, for 4 or 8; they take the same
//                  packed weights
//   cross_entropy  never null, nor are attention, bfloat16's in float, and dropout
//   multiply_adds  keeps the team's threads busy; returns the multiply-adds of one thread, 2 or 4
//   read_memory    reads `count` floats `rounds` times, shared between the threads
#define FASTRNN_DECLARE(isa)                                                                       \
  namespace isa {                                                                                  \
  const CellKernels* kernels(const char* cell, int dtype_bytes);                                   \
  const LayerKernels* row_kernels(const char* cell, int dtype_bytes);                              \
  const Kernel<CrossEntropy>* cross_entropy(int dtype_bytes);                                      \
  const AttentionKernels* attention(int dtype_bytes);                                              \
  const Kernel<Dropout>* dropout(int dtype_bytes);                                                 \
  double multiply_adds(const Team& team, std::int64_t rounds, int dtype_bytes);                    \
  float read_memory(const Team& team, const float* data, std::int64_t count, std::int64_t rounds); \
  }
FASTRNN_DECLARE(portable)
FASTRNN_DECLARE(avx2)
FASTRNN_DECLARE(avx512)
FASTRNN_DECLARE(avx512_bf16)
#undef FASTRNN_DECLARE

}  // namespace fastrnn
