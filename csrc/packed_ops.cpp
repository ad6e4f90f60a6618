// Inference with weights packed beforehand: whole sequences, and one step at a time.
#include <torch/csrc/stable/library.h>

#include <exception>
#include <tuple>
#include <type_traits>

#include "passes.h"
#include "text.h"

namespace fastrnn {

namespace {

Tensor pack_weights(const Tensor& weight_ih, const Tensor& weight_hh,
                    const std::optional<Tensor>& weight_hr, const Text& cell) {
  const std::int64_t GH = weight_hh.size(0), H = GH / cell_sizes(cell).gates;
  const std::int64_t P = weight_hr ? projected_size(*weight_hr, cell, H) : 0;
  const Tensor hh =
      check.tensor("weight_hh", weight_hh, {cell_sizes(cell).gates * H, P ? P : H}, weight_hh);
  const Tensor ih = check.tensor("weight_ih", weight_ih, {GH, weight_ih.size(-1)}, weight_hh);
  const Tensor hr = weight_hr ? check.tensor("weight_hr", *weight_hr, {P, H}, weight_hh) : hh;
  const Weights weights{ih.size(1),
                        H,
                        P,
                        ih.const_data_ptr(),
                        hh.const_data_ptr(),
                        P ? hr.const_data_ptr() : nullptr};
  const Kernel<Weights>& kernel = kernels_for(cell, hh).pack;
  const std::int64_t bytes = kernel.workspace(weights, 1);
  Tensor packed = new_tensor(hh, {bytes / std::int64_t(hh.element_size())});
  run(kernel, weights, static_cast<char*>(packed.mutable_data_ptr()), 1);
  return packed;
}

// Of packed weights, which do not say.
void check_projection(std::int64_t hidden_size, std::int64_t proj_size, const std::string& cell,
                      bool gains) {
  check(proj_size >= 0 && proj_size <= hidden_size, "proj_size must be 0 to H = ", hidden_size,
        ", got ", proj_size);
  check(!proj_size || (cell == "lstm" && !gains), "proj_size needs cell lstm without gains, got ",
        cell);
}

std::tuple<Tensor, Tensor, Tensor> recurrence_packed(
    const Tensor& input, const Tensor& state, const Tensor& packed,
    const std::optional<Tensor>& bias_ih, const std::optional<Tensor>& bias_hh,
    const std::optional<Tensor>& gains, const Tensor& batch_sizes,
    const std::optional<Tensor>& resets, const std::optional<Tensor>& seed,
    const std::optional<Tensor>& sequences, const std::vector<double>& zoneout, const Text& cell,
    std::int64_t proj_size, bool reverse, bool return_cells) {
  Inputs in = checked_inputs(input, state, std::nullopt, std::nullopt, bias_ih, bias_hh,
                             std::nullopt, gains, batch_sizes, cell);
  check_projection(in.hidden_size, proj_size, cell, gains.has_value());
  in.projected = proj_size;
  const Extras extras = checked_extras(in, resets, seed, sequences, zoneout);
  const ForwardPass pass(in, extras, cell, reverse, return_cells, packed);
  run(pass);
  return {pass.output, pass.state_n, pass.cells};
}

// One step through a stack of layers, checked once and taken often: `fastrnn_step` needs no more.
// It lies in a tensor's memory, followed by each layer's Forward and by the rows that all layers
// but the last hand on. The states change in place: a kernel reads h before it copies the last one
// there, and carries c there anyway.
struct Stepper {
  const Kernel<Forward>* kernel;
  std::int64_t layers, row_bytes;
  Segment segment;
  std::int64_t step_begin[2];

  Forward* forwards() { return reinterpret_cast<Forward*>(this + 1); }
  char* handed_on(std::int64_t layer) {
    return reinterpret_cast<char*>(forwards() + layers) + layer * row_bytes;
  }
};
static_assert(std::is_trivially_copyable_v<Stepper> && std::is_trivially_copyable_v<Forward>);
static_assert(sizeof(Stepper) % alignof(Forward) == 0);

// `packed` holds one layer's weights after the other's. The caller keeps all tensors where they are
// for as long as it takes steps.
Tensor stepper(const Tensor& states, const Tensor& packed, const std::optional<Tensor>& biases,
               const std::optional<Tensor>& gains, const std::vector<double>& zoneout,
               const Text& cell, std::int64_t input_size, std::int64_t proj_size) {
  constexpr Checks check{"stepper"};
  const CellSizes& sizes = cell_sizes(cell);
  check.kernel_dtype(states, true);
  check(states.dim() == 4, "states must be [L, S, B, H], got ", states);
  const std::int64_t L = states.size(0), B = states.size(2), H = states.size(3);
  const std::int64_t element = std::int64_t(states.element_size()), GH = sizes.gates * H;
  const std::int64_t P = proj_size ? proj_size : H, K = 2 * (GH + (sizes.states - 1) * H);
  check(L > 0 && B > 0 && H > 0 && input_size > 0,
        "layers, sequences, units and inputs must be at least 1, got ", L, ", ", B, ", ", H,
        " and ", input_size);
  check.tensor("states", states, {L, sizes.states, B, H}, states);
  check(states.is_contiguous() && packed.is_contiguous() && (!biases || biases->is_contiguous()) &&
            (!gains || gains->is_contiguous()),
        "states, packed, biases and gains must be contiguous, got strided ones");
  if (biases) check.tensor("biases", *biases, {L, 2, GH}, states);
  check(!gains || cell == "lstm" || cell == "gru", "gains need cell lstm or gru, got ", cell);
  if (gains) check.tensor("gains", *gains, {L, K}, states);
  check_projection(H, proj_size, cell, gains.has_value());
  check(zoneout.empty() || std::int64_t(zoneout.size()) == sizes.states,
        "zoneout must have S = ", sizes.states, " rates or none, got ", zoneout.size());
  Zoneout expected{};
  expected.on = !zoneout.empty();
  for (std::size_t i = 0; i < zoneout.size(); ++i) expected.rates[i] = zoneout[i];

  const Kernel<Weights>& pack = kernels_for(cell, states).pack;
  const std::int64_t first = pack.workspace({input_size, H, proj_size}, 1);
  const std::int64_t other = pack.workspace({P, H, proj_size}, 1);
  check.tensor("packed", packed, {(first + (L - 1) * other) / element}, states);

  const std::int64_t row_bytes = (B * P * element + 63) / 64 * 64;
  const std::int64_t bytes = sizeof(Stepper) + L * sizeof(Forward) + (L - 1) * row_bytes;
  const Tensor made =
      torch::stable::new_empty(states, {bytes}, torch::headeronly::ScalarType::Byte);
  Stepper* const step = static_cast<Stepper*>(made.mutable_data_ptr());
  const Segment segment{0, 0, B, -1, -1, 0, false, false};
  const LayerKernels& kernels = layer_kernels(cell, states, proj_size || gains);
  *step = {&kernels.forward, L, row_bytes, segment, {0, 1}};
  char* const state = static_cast<char*>(states.mutable_data_ptr());
  char* const weights = static_cast<char*>(packed.mutable_data_ptr());
  const auto part = [&](const std::optional<Tensor>& of, std::int64_t count) {
    return of ? static_cast<const char*>(of->const_data_ptr()) + count * element : nullptr;
  };
  for (std::int64_t l = 0; l < L; ++l) {
    char* const here = state + l * sizes.states * B * H * element;
    const char* const handed = l > 0 ? step->handed_on(l - 1) : nullptr;
    step->forwards()[l] = {
        {B, B, l > 0 ? P : input_size, H, &step->segment, step->step_begin, 1, handed, here,
         nullptr, nullptr, part(biases, 2 * l * GH), part(biases, (2 * l + 1) * GH), false,
         expected, proj_size, nullptr, part(gains, l * K)},
        weights + (l > 0 ? first + (l - 1) * other : 0),
        true,
        l + 1 < L ? step->handed_on(l) : nullptr,
        here,
        nullptr,
        nullptr};
  }
  return made;
}

}  // namespace

// Past torch's dispatcher, which would take as long as a small layer's step: input [B, I] and
// output [B, H or P] are contiguous, of the states' dtype. False if there is no memory left, or a
// tensor has none at all.
extern "C" __attribute__((visibility("default"))) bool fastrnn_step(Stepper* step,
                                                                    const void* input,
                                                                    void* output) {
  if (!input || !output) return false;
  Forward* const layers = step->forwards();
  layers[0].input = input;
  layers[step->layers - 1].output = output;
  try {
    for (std::int64_t l = 0; l < step->layers; ++l)
      run(*step->kernel, layers[l], step_work(layers[l]));
  } catch (const std::exception&) {
    return false;
  }
  return true;
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("pack_weights", TORCH_BOX(&pack_weights));
  m.impl("recurrence_packed", TORCH_BOX(&recurrence_packed));
  m.impl("stepper", TORCH_BOX(&stepper));
}

}  // namespace fastrnn
