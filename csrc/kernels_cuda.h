// What the CUDA kernels are given, and their launches. No torch and no CUDA headers: whoever calls
// brings device pointers and a stream.
//
// Arrays are contiguous, row-major, in the device's memory and of the kernel's dtype unless a
// comment says otherwise. "Sums" are float for float16, bfloat16 and float32, double for float64.
// A launch queues its kernels on `stream` (a cudaStream_t), never waits for the device, and returns
// a cudaError_t (0: queued; device.h has the text).
#pragma once

#include <cstdint>

#include "attention_arguments.h"
#include "inline.h"

namespace fastrnn::cuda {

// tf32: of float32 numbers, whose products may be TF32's.
enum class Dtype { float32, float64, float16, bfloat16, tf32 };

constexpr int max_states = 2;

// One step of the walk over packed rows. Its sequences are 0 to rows - 1. Those below prev_rows
// have their step before (in the order of the walk) at packed row prev_row + sequence, the others
// begin here; those below next_rows go on at next_row + sequence, the others end here.
struct Step {
  std::int64_t time;  // t, the step's place in batch_sizes
  std::int64_t row, rows;
  std::int64_t prev_row, prev_rows;
  std::int64_t next_row, next_rows;
};

// Step i of `steps` equal ones over a padded batch.
FASTRNN_INLINE constexpr Step equal_step(std::int64_t i, std::int64_t steps, std::int64_t batch,
                                         bool reverse) {
  const std::int64_t t = reverse ? steps - 1 - i : i, one = reverse ? -1 : 1;
  return {t,
          t * batch,
          batch,
          (t - one) * batch,
          i > 0 ? batch : 0,
          (t + one) * batch,
          i + 1 < steps ? batch : 0};
}

// What else acts inside a step.
struct Extras {
  const bool* resets;             // [N] or null: zero the row's state before its step
  const std::int64_t* seed;       // one value, or null: each mask is replaced by its expectation
  const std::int64_t* sequences;  // [B], numbers the masks know the sequences by, or null: 0 to B-1
  bool zoned;                     // zoneout acts, be it with rates of 0: the reserve has its slots
  double zoneout[max_states];     // probabilities that a unit keeps its value
};

// One layer and direction, its input already projected.
struct Sequence {
  std::int64_t rows, batch, hidden_size;  // N, B, H
  std::int64_t projected;                 // P, or 0: h is not projected
  const void* state;                      // [S, B, H]; of a projected h the first P units count
  const void* bias_ih;                    // [G*H] or null
  const void* bias_hh;                    // [G*H] or null
  const void* gains;  // of layer normalisation: [G*H], [G*H], and an LSTM's [H], [H]; or null
  Extras extras;

  FASTRNN_INLINE std::int64_t output_size() const { return projected ? projected : hidden_size; }
};

// O is output_size(). A row of the reserve has R slots of H values; with zoneout or a projection of
// h the S states they acted on; with gains the products of the state and of the input, G each.

struct Forward : Sequence {
  const void* x_proj;  // [N, G*H], without its bias
  void* running;  // [S, B, H]: a copy of `state` before the first step, the last states at the end
  void* output;   // [N, O]
  void* cells;    // [S-1, N, H] or null
  void* reserve;  // [N, slots*H] or null
  void*
      unprojected;  // [B, H]: h before its projection, which needs its units side by side; or null
};

struct Backward : Sequence {
  const void* grad_output;   // [N, O] or null
  const void* grad_state_n;  // [S, B, H] or null
  const void* grad_cells;    // [S-1, N, H] or null
  const void* output;        // [N, O]
  const void* cells;         // [S-1, N, H]
  const void* reserve;       // [N, slots*H]
  void* carry;               // sums [S, B, H], scratch: needs no filling
  void* grad_x;              // [N, G*H], of x_proj
  void* grad_h;              // [N, G*H], of the state's product; grad_x if the cell shares them
  void* grad_state;          // [S, B, H]
  void* previous;  // [N, O] or null: h before each row's step, the other side of W_hh's gradient
  void* operand;   // [N, H]: the same for the gates after the operand; null for other cells
  void* grad_projected;  // [N, P], of the projection's result; or null
};

// The step schedule. The caller runs the products between these launches, over the step's rows.
//
// Forward, in the order of the walk; h is running[0, :rows]:
//   no operand:  product [rows, G*H] = h W_hh^T; forward(product)
//   operand:     product [rows, F*H] = h W_hh[:F*H]^T; operand(product, operands, stage);
//                product [rows, (G-F)*H] = operands W_hh[F*H:]^T; forward(product, stage)
//
// Backward, against the walk; `product` [B, H] is one array for all steps:
//   no operand:  backward(product); product[:rows] = grad_h[row : row+rows] W_hh
//   operand:     backward(product); scratch [rows, H] = grad_x[its rows, F*H:] W_hh[F*H:];
//                operand_backward(scratch); product[:rows] = grad_x[its rows, :F*H] W_hh[:F*H]
//   then, where prev_rows < rows: begin(product), which writes grad_state of those that begin
//
// With a projection of h, h is running[0, :rows, :P] and forward is followed by
//   product [rows, P] = unprojected[:rows] W_hr^T; project(product)
// and backward's `product` [B, P] first goes through
//   project_backward(product); scratch [rows, H] = grad_projected[its rows] W_hr; backward(scratch)
struct StepKernels {
  int gates, states, reserve, operand_gates;  // G, S, R, F
  bool shared_gradients;                      // grad_h is grad_x

  // stage: [B, F*H] where `reserve` is null, for a cell with an operand; else null.
  int (*forward)(const Forward&, const Step&, const void* product, const void* stage, void* stream);
  // operands: [B, H]. Null for a cell without an operand, as is operand_backward.
  int (*operand)(const Forward&, const Step&, const void* product, void* operands, void* stage,
                 void* stream);
  int (*backward)(const Backward&, const Step&, const void* product, void* stream);
  int (*operand_backward)(const Backward&, const Step&, const void* product, void* stream);
  int (*begin)(const Backward&, const Step&, const void* product, void* stream);
  // Null for a cell whose h is never projected, as is project_backward.
  int (*project)(const Forward&, const Step&, const void* product, void* stream);
  int (*project_backward)(const Backward&, const Step&, const void* product, void* stream);
};

// Null for a cell that has none; `cell` is a name of fastrnn/cells.py.
const StepKernels* step_kernels(const char* cell, Dtype dtype);

// Layer normalisation's backward pass keeps gradients until their sums over all rows are taken.
struct NormBackward : Backward {
  void* gates;         // [N, G*H]: of the gates' shares from the input, normalised
  void* gates_h;       // [N, G*H]: of those from the state; `gates` if the cell shares them
  void* grad_c;        // [N, H]: of c as h saw it; null for a cell of one state
  void* moments;       // sums [1+S, N, 2], scratch: mean, 1 / deviation of x_proj, product and c
  void* grad_gains;    // as `gains`, or null
  void* grad_bias_ih;  // [G*H] or null
  void* grad_bias_hh;  // [G*H] or null
};

// What takes the places of a step's `forward` and `backward` with gains; after the loop `finish`
// writes grad_x and the gradients of gains and biases.
struct NormKernels {
  // inner: sums [B, R+1, H], scratch, for a cell of two states; else null.
  int (*forward)(const Forward&, const Step&, const void* product, void* inner, void* stream);
  int (*backward)(const NormBackward&, const Step&, const void* product, void* stream);
  int (*finish)(const NormBackward&, void* stream);
};

// Null for a cell without layer normalisation.
const NormKernels* norm_kernels(const char* cell, Dtype dtype);

// The persistent schedules: one launch for all steps, W_hh kept on the chip. `table` is the walk
// [steps] in the device's memory, or null: equal steps over B sequences (equal_step).
struct Steps {
  std::int64_t steps;
  const Step* table;
  bool reverse;
};

// One direction of a layer, or one layer of a stack.
template <class Pass>
struct Way {
  Pass pass;  // Forward or Backward
  Steps steps;
  const void* weight_hh;  // [G*H, H]
  // Of a stack's ways but the last, in the order in which they wait for each other: forward the
  // W_ih [G*H, H] of the layer above, whose x_proj this one writes; backward the layer's own W_ih,
  // by which it writes the grad_output of the one below. Else null.
  const void* weight_on = nullptr;
};
constexpr int max_ways = 4;

// How a persistent kernel is laid over the device, for each way.
struct Layout {
  int cluster;          // blocks that hold W_hh together; the whole grid for the grid schedule
  int clusters;         // which deal the sequences among them
  int share;            // blocks of the grid that share k, as a cluster; else 1
  int tile;             // sequences of each cluster, for the grid schedule at a time
  int threads;          // of a block
  std::int64_t shared;  // bytes of shared memory a block needs
  std::int64_t bytes;   // of its workspace, zeroed before every launch; 0: none
};

struct PersistentKernels {
  // Fills *layout for `cluster` blocks (2 to 16, or the whole grid, a multiple of `share`) on the
  // `processors` that such clusters can have; false: the shape does not fit `shared_limit` bytes of
  // shared memory a block.
  bool (*layout)(bool backward, std::int64_t batch, std::int64_t hidden_size, int cluster,
                 int share, int processors, std::int64_t shared_limit, Layout* layout);
  // One direction, or both side by side in one launch, of the same N, B, H and number of steps, or
  // a stack's layers; their workspaces lie one after the other. `running` is written only; `carry`
  // is not used.
  int (*forward)(const Way<Forward>* ways, int count, const Layout&, void* workspace, void* stream);
  int (*backward)(const Way<Backward>* ways, int count, const Layout&, void* workspace,
                  void* stream);
};

// Null where a cell and dtype have none.
const PersistentKernels* cluster_kernels(const char* cell, Dtype dtype);  // sm_90 and later
const PersistentKernels* grid_kernels(const char* cell, Dtype dtype);     // sm_80 and later
// Layers one above the other, 2 to max_ways; sm_90 and later, 16-bit dtypes.
const PersistentKernels* stack_kernels(const char* cell, Dtype dtype);

// Masked attention, heads of up to 256 units; `shared_limit` is what one block can have.
struct AttentionGradients : AttentionBackward {
  void* statistics;  // sums [B, heads, Lq, 2], scratch, each pair aligned
};
int attention_forward(Dtype, const AttentionForward&, std::int64_t shared_limit, void* stream);
int attention_backward(Dtype, const AttentionGradients&, std::int64_t shared_limit, void* stream);

}  // namespace fastrnn::cuda
