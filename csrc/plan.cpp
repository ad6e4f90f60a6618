#include "plan.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <stdexcept>

#include "plan_candidates.h"

namespace fastrnn::cuda {

namespace {

template <class... Words>
void check(bool ok, const Words&... words) {
  if (!ok) throw std::invalid_argument(line("plan: ", words...));
}

constexpr std::array<const char*, 4> asked_names{"cluster", "grid", "step", "auto"};
std::atomic<int> asked_index{3};
std::atomic<bool> tf32{false};
std::mutex failures_mutex;
std::map<int, Failures> failures;  // by device

int index_of(const std::string& name) {
  const auto found = std::find(asked_names.begin(), asked_names.end(), name);
  check(found != asked_names.end(), "schedule must be auto, cluster, grid or step, got '", name,
        "'");
  return int(found - asked_names.begin());
}

const CellSizes& checked(const Request& r, const Offer& offer) {
  const CellSizes* const cell = find_cell(r.cell);
  check(cell, "no compiled cell is called '", r.cell, "'");
  check(r.steps > 0 && r.batch > 0 && r.hidden_size > 0,
        "T, B and H must be positive, got T=", r.steps, ", B=", r.batch, ", H=", r.hidden_size);
  check(r.directions == 1 || r.directions == 2, "directions must be 1 or 2, got ", r.directions);
  check(r.layers > 0 && (r.layers == 1 || r.directions == 1),
        "layers must be positive, and of one direction if there are more, got ", r.layers);
  check(offer.capability > 0 && offer.processors >= r.directions && offer.shared_memory > 0,
        "the device must have a capability, processors and shared memory");
  index_of(r.asked);
  return *cell;
}

// Elements of the largest array, [N, G*H] or the reserve with all slots there may be.
std::int64_t elements(const Request& r, const CellSizes& cell) {
  const std::int64_t slots = cell.reserve + cell.states + (r.layer_norm ? 2 * cell.gates : 0);
  std::int64_t count = std::max(cell.gates, slots);
  bool fits = true;
  for (const std::int64_t size : {r.steps, r.batch, r.hidden_size})
    fits = fits && !__builtin_mul_overflow(count, size, &count);
  // Offsets are in bytes, of at most 8 an element.
  check(fits && count < (std::int64_t(1) << 60),
        "T*B*H must be below 2^60 gate values, got T=", r.steps, ", B=", r.batch,
        ", H=", r.hidden_size);
  return count;
}

}  // namespace

std::string Plan::text() const {
  if (!schedule) return "no CUDA schedule";
  const char* name = schedule_names[std::size_t(*schedule)];
  if (*schedule == Schedule::step) return "step: a product and a fused kernel per step";
  return line(name, ": whole sequence in one kernel, ",
              at_once > 1 ? "both directions at once, each " : "",
              layers > 1 ? line(layers, " layers at once, each ") : "", layout.clusters, " x ",
              layout.cluster, " blocks of ", layout.threads, " threads, ", layout.tile,
              " sequences and ", layout.shared, " bytes of shared memory each");
}

const char* schedule_asked() { return asked_names[asked_index]; }

void ask_schedule(const std::string& name) { asked_index = index_of(name); }

bool tf32_allowed() { return tf32; }

void allow_tf32(bool allowed) { tf32 = allowed; }

void remember_failure(int device, std::size_t launch, const std::string& why) {
  const std::lock_guard<std::mutex> lock(failures_mutex);
  failures[device][launch] = why;
}

Failures launch_failures(int device) {
  const std::lock_guard<std::mutex> lock(failures_mutex);
  return failures[device];
}

namespace {

Plan plan_at_once(const Request& request, const CellSizes& cell, const Offer& offer) {
  Plan result;
  result.at_once = request.directions;
  result.elements = elements(request, cell);
  std::array<Candidate, schedule_names.size()> found;
  for (std::size_t i = 0; i < found.size(); ++i) {
    found[i] = candidate(Schedule(i), request, cell, offer);
    if (!found[i].reason.empty()) continue;
    if (request.asked != "auto" && request.asked != schedule_names[i])
      found[i].reason = request.asked + " was asked for";
    else if (!result.schedule || found[i].cycles < found[std::size_t(*result.schedule)].cycles)
      result.schedule = Schedule(i);
  }
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (result.schedule == Schedule(i))
      result.layout = found[i].layout, result.cycles = found[i].cycles;
    else if (!found[i].reason.empty())
      result.refused[i] = found[i].reason;
    else
      result.refused[i] = line("slower than ", schedule_names[std::size_t(*result.schedule)]);
  }
  return result;
}

// All layers in one launch.
Candidate in_one_launch(const Request& r, const CellSizes& cell, const Offer& offer) {
  if (r.layers > max_ways) return {line("one launch has at most ", max_ways, " layers")};
  if (!cell.shared_gradients || cell.operand_gates > 0)
    return {"needs a cell whose state and input have the same gates' gradients"};
  if (bytes_of(r.dtype) != 2) return {"takes float16 and bfloat16"};
  if (r.asked != "auto") return {r.asked + " was asked for"};  // of each layer by itself
  if (const std::string& why = r.failed[layers_in_one_launch]; !why.empty()) return {refusal(why)};
  return candidate(Schedule::cluster, r, cell, offer);
}

Plan plan_layers(const Request& request, const CellSizes& cell, const Offer& offer) {
  Request one = request;
  one.layers = 1;
  Plan result = plan(one, offer);
  Candidate stack = in_one_launch(request, cell, offer);
  // Each layer is about four steps behind the one before it.
  const double together = stack.cycles * double(request.steps + 4 * (request.layers - 1));
  if (stack.reason.empty() && together >= result.cycles * double(request.steps * request.layers))
    stack.reason = "slower than one by one";
  result.apart = stack.reason;
  if (!stack.reason.empty()) return result;
  result.refused[std::size_t(Schedule::cluster)].clear();
  if (result.schedule != Schedule::cluster)
    result.refused[std::size_t(*result.schedule)] = "slower than cluster";
  result.schedule = Schedule::cluster;
  result.layout = stack.layout, result.cycles = stack.cycles, result.layers = request.layers;
  return result;
}

}  // namespace

Plan plan(const Request& request, const Offer& offer) {
  const CellSizes& cell = checked(request, offer);
  if (request.layers > 1) return plan_layers(request, cell, offer);
  const Plan both = plan_at_once(request, cell, offer);
  if (request.directions == 1) return both;
  // Steps run one direction after the other anyway; all of the device may be more than twice as
  // fast as half of it.
  Request one = request;
  one.directions = 1;
  const Plan single = plan_at_once(one, cell, offer);
  const bool at_once = both.schedule && both.schedule != Schedule::step;
  return at_once && both.cycles <= 2 * single.cycles ? both : single;
}

}  // namespace fastrnn::cuda
