#include "plan.h"

#include <algorithm>
#include <atomic>
#include <sstream>
#include <stdexcept>

#include "cells.h"
#include "cluster_plan.h"

namespace fastrnn::cuda {

namespace {

struct CellSizes {
  const char* name;
  std::int64_t gates, states, reserve, operand_gates;
  bool shared_gradients;
};

template <class Cell>
constexpr CellSizes sizes_of(const char* name) {
  return {name,          Cell::gates,         Cell::states,
          Cell::reserve, Cell::operand_gates, Cell::shared_gradients};
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
std::atomic<bool> tf32{false};

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

int bytes_of(Dtype dtype) {
  if (dtype == Dtype::float64) return 8;
  return dtype == Dtype::float32 || dtype == Dtype::tf32 ? 4 : 2;
}

// Cycles of one step, estimated, to compare what can run; make gpu measures them.
// Latencies after the H100's published ones: DSMEM 200 cycles and 15 bytes a cycle, a cluster's
// barrier 350 and a little more for every block; the grid's barrier 2600 and exchanged rows from L2
// at 64 bytes a cycle; two launches 4 us at 1.7 GHz, and weights from L2 at 2500 bytes a cycle for
// the whole device. A cell with an operand exchanges, and launches, twice a step.
double cluster_cycles(const ClusterShape& shape, const ClusterPlan& p, double rounds) {
  const double exchanged = double(p.tile) * p.stride * shape.number_bytes;
  return rounds *
         (shape.products() * (550. + 20 * p.cluster) + exchanged / 15 + cluster_cost(shape, p));
}
double grid_cycles(const ClusterShape& shape, const ClusterPlan& p, double exchanged) {
  // Backward the two products take a part of the rows each.
  const int reads = shape.backward ? 1 : shape.products();
  // Blocks that share k send the others' sums through distributed shared memory, 15 bytes a cycle.
  const double sums = 4. * p.slots * octet * columns * shape.tiles * p.own * (p.share - 1);
  const double meeting = p.share > 1 ? 350 + sums / 15 / shape.products() : 0;
  return shape.products() * (2600 + meeting) + reads * exchanged / p.share / 64 +
         shape.tiles * cluster_cost(shape, p);
}
double step_cycles(const Request& r, const CellSizes& cell) {
  const double weights = double(cell.gates) * r.hidden_size * r.hidden_size * bytes_of(r.dtype);
  return 7000 * (cell.operand_gates > 0 ? 2 : 1) + weights / 2500;
}

// What a schedule would do, or why it cannot.
struct Candidate {
  std::string reason;
  Layout layout{};
  double cycles = 0;
};

Candidate on_clusters(const Request& r, const CellSizes& cell, const Offer& offer) {
  // A stack's layers wait for each other, so that all clusters have to run at once, and clusters
  // leave some processors of a group over.
  const bool stack = r.layers > 1;
  const int processors =
      (stack ? offer.processors * 8 / 9 : offer.processors) / r.directions / r.layers;
  ClusterShape shape{int(cell.gates),   int(cell.states), int(cell.operand_gates),
                     bytes_of(r.dtype), r.backward,       r.dtype == Dtype::float32,
                     r.hidden_size};
  shape.stack = stack;
  Candidate best;
  // Eight blocks are a cluster everywhere; sixteen on Hopper and the large Blackwells alone.
  const int most = offer.capability < 110 ? 16 : 8;
  for (int cluster = 2; cluster <= most; cluster *= 2) {
    const std::int64_t at_once = processors / cluster;
    if (at_once == 0 || r.batch > INT32_MAX || r.hidden_size > INT32_MAX / octet) break;
    const int tile = int(std::min<std::int64_t>((r.batch + at_once - 1) / at_once, columns));
    const ClusterPlan p = cluster_plan(shape, cluster, tile, offer.shared_memory);
    if (p.jobs == 0) continue;
    const std::int64_t clusters = (r.batch + tile - 1) / tile;
    if (stack && clusters > at_once) continue;
    const std::int64_t counts = stack ? p.count_bytes(clusters) : 0;
    const double estimate = cluster_cycles(shape, p, double((clusters + at_once - 1) / at_once));
    if (best.cycles == 0 || estimate < best.cycles)
      best = {"", {cluster, int(clusters), 1, tile, p.threads(), p.shared, counts}, estimate};
  }
  if (best.cycles == 0)
    best.reason = stack ? line("do not all fit at once: ", r.layers, " layers of [",
                               cell.gates * r.hidden_size, ", ", 2 * r.hidden_size, "] and ",
                               r.batch, " sequences on ", offer.processors, " processors")
                        : line("does not fit: W_hh is [", cell.gates * r.hidden_size, ", ",
                               r.hidden_size, "], a cluster's ", most, " blocks have ",
                               most * offer.shared_memory, " bytes");
  return best;
}

Candidate on_grid(const Request& r, const CellSizes& cell, const Offer& offer) {
  // As recurrence_grid.cu lays it out.
  constexpr std::int64_t max_batch = 64, flag_bytes = 256;
  const int processors = offer.processors / r.directions;
  if (r.batch > max_batch) return {line("takes at most ", max_batch, " sequences")};
  const int tile = int(std::min<std::int64_t>(r.batch, columns));
  const int tiles = int((r.batch + tile - 1) / tile);
  Candidate best;
  for (const int share : {1, 2, 4}) {
    if (share > 1 && offer.capability < 90) break;
    // Some processors of a group are left over where clusters have four.
    const int blocks = (share < 4 ? processors : processors * 8 / 9) / share * share;
    if (blocks == 0 || r.hidden_size > INT32_MAX / octet) break;
    const ClusterShape shape{int(cell.gates),
                             int(cell.states),
                             int(cell.operand_gates),
                             bytes_of(r.dtype),
                             r.backward,
                             false,
                             r.hidden_size,
                             true,
                             tiles,
                             share};
    const ClusterPlan p = cluster_plan(shape, blocks, tile, offer.shared_memory);
    if (p.jobs == 0) continue;
    const std::int64_t exchanged = std::int64_t(tiles) * tile * p.stride * shape.number_bytes;
    const double estimate = grid_cycles(shape, p, double(exchanged));
    if (best.cycles == 0 || estimate < best.cycles)
      best = {"",
              {p.blocks(r.hidden_size), 1, share, tile, p.threads(), p.shared,
               flag_bytes + p.buffers * exchanged},
              estimate};
  }
  if (best.cycles == 0)
    best.reason =
        line("does not fit: W_hh is [", cell.gates * r.hidden_size, ", ", r.hidden_size, "], all ",
             processors, " blocks have ", processors * offer.shared_memory, " bytes");
  return best;
}

Candidate candidate(Schedule schedule, const Request& r, const CellSizes& cell,
                    const Offer& offer) {
  if (schedule == Schedule::step) return {"", {}, step_cycles(r, cell)};
  // Both need all units of a row, which no block of a persistent kernel has.
  if (r.layer_norm) return {"has no layer normalisation"};
  if (r.projected) return {"has no projection of h"};
  const bool clusters = schedule == Schedule::cluster;
  const int needed = clusters ? 90 : 80;
  if (offer.capability < needed)
    return {line("needs compute capability ", needed / 10, ".0",
                 clusters ? " (thread-block clusters)" : "", ", the device has ",
                 offer.capability / 10, ".", offer.capability % 10)};
  if (r.dtype == Dtype::float64) return {"has no float64 kernels"};
  if (r.dtype == Dtype::float32 && !clusters)
    return {"has no exact float32 kernels, and TF32 is not allowed"};
  return clusters ? on_clusters(r, cell, offer) : on_grid(r, cell, offer);
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

}  // namespace

namespace {

// All layers in one launch.
Candidate in_one_launch(const Request& r, const CellSizes& cell, const Offer& offer) {
  if (r.layers > max_ways) return {line("one launch has at most ", max_ways, " layers")};
  if (!cell.shared_gradients || cell.operand_gates > 0)
    return {"needs a cell whose state and input have the same gates' gradients"};
  if (bytes_of(r.dtype) != 2) return {"takes float16 and bfloat16"};
  if (r.asked != "auto") return {r.asked + " was asked for"};  // of each layer by itself
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
