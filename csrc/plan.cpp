#include "plan.h"

#include <algorithm>
#include <atomic>
#include <sstream>
#include <stdexcept>

#include "cells.h"

namespace fastrnn::cuda {

namespace {

struct CellSizes {
  const char* name;
  std::int64_t gates, states, reserve;
};

template <class Cell>
constexpr CellSizes sizes_of(const char* name) {
  return {name, Cell::gates, Cell::states, Cell::reserve};
}

constexpr CellSizes cells[] = {sizes_of<device::Lstm>("lstm"), sizes_of<device::Gru>("gru"),
                               sizes_of<device::GruResetBefore>("gru_reset_before"),
                               sizes_of<device::RnnTanh>("rnn_tanh"),
                               sizes_of<device::RnnRelu>("rnn_relu")};

template <class... Words>
std::string line(const Words&... words) {
  std::ostringstream text;
  (text << ... << words);
  return text.str();
}

template <class... Words>
void check(bool ok, const Words&... words) {
  if (!ok) throw std::invalid_argument(line("plan: ", words...));
}

constexpr std::array<const char*, 4> asked_names{"cluster", "grid", "step", "auto"};
std::atomic<int> asked_index{3};

int index_of(const std::string& name) {
  const auto found = std::find(asked_names.begin(), asked_names.end(), name);
  check(found != asked_names.end(), "schedule must be auto, cluster, grid or step, got '", name,
        "'");
  return int(found - asked_names.begin());
}

const CellSizes& checked(const Request& r, const Offer& offer) {
  const auto cell = std::find_if(std::begin(cells), std::end(cells),
                                 [&](const CellSizes& sizes) { return r.cell == sizes.name; });
  check(cell != std::end(cells), "no compiled cell is called '", r.cell, "'");
  check(r.steps > 0 && r.batch > 0 && r.hidden_size > 0,
        "T, B and H must be positive, got T=", r.steps, ", B=", r.batch, ", H=", r.hidden_size);
  check(r.directions == 1 || r.directions == 2, "directions must be 1 or 2, got ", r.directions);
  check(offer.capability > 0 && offer.processors >= r.directions && offer.shared_memory > 0,
        "the device must have a capability, processors and shared memory");
  index_of(r.asked);
  return *cell;
}

// Elements of the largest array, [N, G*H] or the reserve with zoneout's slots.
std::int64_t elements(const Request& r, const CellSizes& cell) {
  std::int64_t count = std::max(cell.gates, cell.reserve + cell.states);
  bool fits = true;
  for (const std::int64_t size : {r.steps, r.batch, r.hidden_size})
    fits = fits && !__builtin_mul_overflow(count, size, &count);
  // Offsets are in bytes, of at most 8 an element.
  check(fits && count < (std::int64_t(1) << 60),
        "T*B*H must be below 2^60 gate values, got T=", r.steps, ", B=", r.batch,
        ", H=", r.hidden_size);
  return count;
}

// Why a persistent schedule cannot run, or empty; fills *layout.
std::string persistent_refusal(Schedule schedule, const Request& r, const Offer& offer, Layout*) {
  const bool clusters = schedule == Schedule::cluster;
  const int needed = clusters ? 90 : 80;
  if (offer.capability < needed)
    return line("needs compute capability ", needed / 10, ".0",
                clusters ? " (thread-block clusters)" : "", ", the device has ",
                offer.capability / 10, ".", offer.capability % 10);
  if (r.dtype == Dtype::float64) return "has no float64 kernels";
  return line("has no kernels for ", r.cell, " yet");
}

}  // namespace

std::string Plan::text() const {
  if (!schedule) return "no CUDA schedule";
  const char* name = schedule_names[std::size_t(*schedule)];
  if (*schedule == Schedule::step) return "step: a product and a fused kernel per step";
  return line(name, ": whole sequence in one kernel, ", layout.clusters, " x ", layout.cluster,
              " blocks of ", layout.threads, " threads, ", layout.tile, " sequences and ",
              layout.shared, " bytes of shared memory each");
}

const char* schedule_asked() { return asked_names[asked_index]; }

void ask_schedule(const std::string& name) { asked_index = index_of(name); }

Plan plan(const Request& request, const Offer& offer) {
  Plan result;
  result.elements = elements(request, checked(request, offer));
  for (const Schedule schedule : {Schedule::cluster, Schedule::grid, Schedule::step}) {
    const char* name = schedule_names[std::size_t(schedule)];
    std::string& reason = result.refused[std::size_t(schedule)];
    Layout layout{};
    if (request.layer_norm)
      reason = "has no layer normalisation";
    else if (schedule != Schedule::step)
      reason = persistent_refusal(schedule, request, offer, &layout);
    if (!reason.empty()) continue;
    if (request.asked != "auto" && request.asked != name)
      reason = request.asked + " was asked for";
    else if (result.schedule)
      reason = line("slower than ", schedule_names[std::size_t(*result.schedule)]);
    else
      result.schedule = schedule, result.layout = layout;
  }
  return result;
}

}  // namespace fastrnn::cuda
