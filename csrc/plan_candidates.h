// What each schedule would do with a request, and how long by estimate.
#pragma once

#include <algorithm>
#include <sstream>

#include "cell_sizes.h"
#include "cluster_plan.h"
#include "plan.h"

namespace fastrnn::cuda {

template <class... Words>
std::string line(const Words&... words) {
  std::ostringstream text;
  (text << ... << words);
  return text.str();
}

inline int bytes_of(Dtype dtype) {
  if (dtype == Dtype::float64) return 8;
  return dtype == Dtype::float32 || dtype == Dtype::tf32 ? 4 : 2;
}

// Cycles of one step, estimated, to compare what can run; make gpu measures them.
// Latencies after the H100's published ones: DSMEM 200 cycles and 15 bytes a cycle, a cluster's
// barrier 350 and a little more for every block; the grid's barrier 2600 and exchanged rows from L2
// at 64 bytes a cycle; two launches 4 us at 1.7 GHz, and weights from L2 at 2500 bytes a cycle for
// the whole device. A cell with an operand exchanges, and launches, twice a step.
inline double cluster_cycles(const ClusterShape& shape, const ClusterPlan& p, double rounds) {
  const double exchanged = double(p.tile) * p.stride * shape.number_bytes;
  return rounds *
         (shape.products() * (550. + 20 * p.cluster) + exchanged / 15 + cluster_cost(shape, p));
}
inline double grid_cycles(const ClusterShape& shape, const ClusterPlan& p, double exchanged) {
  // Backward the two products take a part of the rows each.
  const int reads = shape.backward ? 1 : shape.products();
  // Blocks that share k send the others' sums through distributed shared memory, 15 bytes a cycle.
  const double sums = 4. * p.slots * octet * columns * shape.tiles * p.own * (p.share - 1);
  const double meeting = p.share > 1 ? 350 + sums / 15 / shape.products() : 0;
  return shape.products() * (2600 + meeting) + reads * exchanged / p.share / 64 +
         cluster_cost(shape, p);
}
inline double step_cycles(const Request& r, const CellSizes& cell) {
  const double weights = double(cell.gates) * r.hidden_size * r.hidden_size * bytes_of(r.dtype);
  return 7000 * (cell.operand_gates > 0 ? 2 : 1) + weights / 2500;
}

// What a schedule would do, or why it cannot.
struct Candidate {
  std::string reason;
  Layout layout{};
  double cycles = 0;
};

inline ClusterShape shape_of(const Request& r, const CellSizes& cell, bool exact) {
  return {int(cell.gates),
          int(cell.states),
          int(cell.operand_gates),
          int(cell.biases),
          bytes_of(r.dtype),
          r.backward,
          exact,
          r.hidden_size};
}

inline Candidate on_clusters(const Request& r, const CellSizes& cell, const Offer& offer) {
  // A stack's layers wait for each other, so that all clusters have to run at once.
  const bool stack = r.layers > 1;
  ClusterShape shape = shape_of(r, cell, r.dtype == Dtype::float32);
  shape.stack = stack;
  Candidate best;
  // Eight blocks are a cluster everywhere; sixteen on Hopper and the large Blackwells alone.
  const int most = offer.capability < 110 ? 16 : 8;
  for (int cluster = 2; cluster <= most; cluster *= 2) {
    const std::int64_t at_once = offer.at_once(cluster) / r.directions / r.layers;
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

inline Candidate on_grid(const Request& r, const CellSizes& cell, const Offer& offer) {
  // As recurrence_grid.cu lays it out.
  constexpr std::int64_t max_batch = 64, flag_bytes = 256;
  const int processors = offer.processors / r.directions;
  if (r.batch > max_batch) return {line("takes at most ", max_batch, " sequences")};
  const int tile = int(std::min<std::int64_t>(r.batch, columns));
  const int tiles = int((r.batch + tile - 1) / tile);
  Candidate best;
  for (const int share : {1, 2, 4}) {
    if (share > 1 && offer.capability < 90) break;
    const int blocks = offer.at_once(share) / r.directions * share;
    if (blocks == 0 || r.hidden_size > INT32_MAX / octet) break;
    ClusterShape shape = shape_of(r, cell, false);
    shape.grid = true, shape.tiles = tiles, shape.share = share;
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

inline std::string refusal(const std::string& why) { return "could not be launched here: " + why; }

inline Candidate candidate(Schedule schedule, const Request& r, const CellSizes& cell,
                           const Offer& offer) {
  if (schedule == Schedule::step) return {"", {}, step_cycles(r, cell)};
  // Both need all units of a row, which no block of a persistent kernel has.
  if (r.layer_norm) return {"has no layer normalisation"};
  if (r.projected) return {"has no projection of h"};
  const std::string& failed = r.failed[std::size_t(schedule)];
  if (r.layers == 1 && !failed.empty()) return {refusal(failed)};
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

}  // namespace fastrnn::cuda
