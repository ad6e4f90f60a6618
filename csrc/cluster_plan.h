// How a block of a cluster divides its share of W_hh among warps, registers and shared memory.
//
// Units come in octets. A warp's job is one octet with all its gates (forward) or two octets
// (backward): `slots` groups of eight rows, times all of k. k, the other side of the product, holds
// `values` numbers per unit (forward 1: h; backward G: the gates' gradients) and is cut into chunks
// of 32; `splits` warps share a job's chunks, each holding the first `held` of its own in
// registers.
//
// A cell with an operand takes two products a step. Forward they share out the slots, and k is h,
// then the operand. Backward they share out k: first the gates after the operand, then the others.
//
// A layer of a stack has as many slots again, of the matrix by which it makes what the next layer
// reads.
//
// In the grid schedule the blocks of a cluster may share k: each takes the jobs of all of them, and
// a part of the chunks. The sums then meet in the block that owns the job.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "kernels_cuda.h"

namespace fastrnn::cuda {

constexpr int chunk_k = 32, octet = 8, columns = 8;
constexpr int most_peers = 16;  // blocks of a cluster

// How much a warp holds in registers: chunks of 4 registers a slot, as many as a kernel of so many
// threads has without spilling. Exact products of float32 hold none; TF32's hold half as many.
enum class Held { none, some, most };

FASTRNN_INLINE constexpr int held_chunks(Held held, int slots, int number_bytes, bool stack) {
  if (held == Held::none) return 0;
  const bool wide = stack && slots >= 4;
  const int some = slots == 1 ? 6 : slots == 2 ? (stack ? 4 : 5) : wide ? 1 : 3;
  const int most = slots == 1 ? 12 : slots == 2 && stack ? 5 : slots <= 3 ? 7 : wide ? 3 : 6;
  return (held == Held::most ? most : some) * 2 / number_bytes;
}
FASTRNN_INLINE constexpr int thread_limit(Held held) { return held == Held::most ? 256 : 384; }

// Chunks that a warp of the grid asks for ahead: 4 KB, so that all of a device's together keep its
// L2 busy.
FASTRNN_INLINE constexpr int asked_chunks(int number_bytes) { return 16 / number_bytes; }
// The most tiles that its products are taken of at once: weights are read once for all of them.
FASTRNN_INLINE constexpr int tiles_at_once(int number_bytes) { return number_bytes == 2 ? 3 : 2; }

struct ClusterPlan {
  int cluster, tile;                 // blocks; sequences, of `columns`
  int slots, octets_of_job, values;  // see above
  int numbers;                       // a lane keeps for each of its units and sequences
  int own, share;                    // jobs that a block owns; blocks that share k
  int jobs, splits, chunks;          // own * share
  int first_chunks;  // of the first product, the others are the second's; all if they share k
  // Of the exchanged rows, a power of two: one where products read places of their own, four where
  // rows are read again a step later.
  int buffers;
  Held held;
  int in_registers;  // chunks that a warp holds there, if it has as many
  int stride;        // of a sequence's row of k, in numbers
  // Shared memory: offsets in bytes and the sum.
  std::int64_t rows, partial, stage, sums, state, biases, ahead, shared;

  FASTRNN_INLINE int threads() const { return 32 * jobs * splits; }
  // A stack's workspace for each layer: a count of every warp that may have units.
  FASTRNN_INLINE std::int64_t count_bytes(std::int64_t clusters) const {
    return clusters * cluster * own * std::int64_t(sizeof(unsigned));
  }
  FASTRNN_INLINE int octets() const { return own * octets_of_job; }  // of a block
  // No more than have units, in whole clusters.
  FASTRNN_INLINE int blocks(std::int64_t hidden_size) const {
    const std::int64_t of_cluster = std::int64_t(octets()) * share * octet;
    return int((hidden_size + of_cluster - 1) / of_cluster) * share;
  }
  // Of a job's chunks, those of one of its warps are piece, piece + pieces, ...
  FASTRNN_INLINE int pieces() const { return splits * share; }
  FASTRNN_INLINE int chunks_of(int piece) const {
    return (chunks - piece + pieces() - 1) / pieces();
  }
  // Those in shared memory, and where they begin among the job's.
  FASTRNN_INLINE int stored(int piece) const {
    const int all = chunks_of(piece);
    return all > in_registers ? all - in_registers : 0;
  }
  // In the first block of those that share k, which has the most.
  FASTRNN_INLINE int stored_before(int part) const {
    int sum = 0;
    for (int before = 0; before < part; ++before) sum += stored(before);
    return sum;
  }
};

struct ClusterShape {
  int gates, states, operand_gates, biases, number_bytes;
  bool backward, exact;  // exact: not by tensor cores
  std::int64_t hidden_size;
  // The grid schedule: the rows of k are in device memory, blocks take turns at several tiles.
  bool grid = false;
  int tiles = 1;
  int share = 1;
  bool stack = false;

  FASTRNN_INLINE int products() const { return operand_gates > 0 ? 2 : 1; }
};

inline ClusterPlan cluster_plan_of(const ClusterShape& shape, int cluster, int tile, int splits,
                                   Held held) {
  ClusterPlan p{};
  p.cluster = cluster, p.tile = tile;
  p.octets_of_job = shape.backward ? 2 : 1;
  p.slots = (shape.backward ? 2 : shape.gates) * (shape.stack ? 2 : 1);
  p.values = shape.backward ? shape.gates : 1;
  p.numbers = shape.states + shape.operand_gates;
  const std::int64_t octets = (shape.hidden_size + octet - 1) / octet;
  const std::int64_t of_job = std::int64_t(cluster) * p.octets_of_job;
  p.own = int((octets + of_job - 1) / of_job), p.share = shape.share;
  p.jobs = p.own * p.share;
  p.splits = splits, p.held = held;
  p.in_registers = held_chunks(held, p.slots, shape.number_bytes, shape.stack);
  // Blocks take whole jobs; the last ones may have fewer, or none.
  const std::int64_t used = (octets + p.octets_of_job - 1) / p.octets_of_job * p.octets_of_job;
  const auto chunks = [&](int values) {
    return int((used * octet * values + chunk_k - 1) / chunk_k);
  };
  const bool two_ranges = shape.backward && shape.operand_gates > 0;
  p.first_chunks = chunks(two_ranges ? shape.gates - shape.operand_gates : p.values);
  p.chunks = p.first_chunks + (two_ranges ? chunks(shape.operand_gates) : 0);
  p.buffers = two_ranges ? 1 : shape.stack ? 4 : 2;
  // Rows lie off a multiple of 128 bytes: the lanes of a 16-byte load meet different banks.
  const int bytes = shape.number_bytes, row = p.chunks * chunk_k * bytes;
  p.stride = (row + (row % 128 == 0 ? (bytes == 2 ? 64 : 16) : 0)) / bytes;
  p.rows = std::int64_t(p.jobs) * p.stored_before(splits) * p.slots * octet * chunk_k * bytes;
  p.partial = p.rows + (shape.grid ? 0 : std::int64_t(p.buffers) * tile * p.stride * bytes);
  const int at_once = tiles_at_once(bytes), tiles = shape.tiles < at_once ? shape.tiles : at_once;
  p.stage = p.partial + std::int64_t(p.jobs) * (splits - 1) * tiles * p.slots * octet * columns * 4;
  // The grid's warps take any of the gates; each stages its own.
  const int pairs = p.own * shape.tiles;
  const int stages = shape.grid ? (pairs < p.jobs * splits ? pairs : p.jobs * splits) : p.own;
  p.sums = p.stage + std::int64_t(stages) * tile * p.octets_of_job * octet * p.values * bytes;
  p.state = p.sums + (shape.grid ? 4ll * pairs * p.share * p.slots * octet * columns : 0);
  p.biases = p.state + 4ll * shape.tiles * p.numbers * p.octets() * octet * columns;
  p.ahead = p.biases + (shape.backward ? 0 : 4ll * shape.biases * p.octets() * octet);
  p.shared = p.ahead;
  if (shape.grid) p.shared += std::int64_t(p.threads()) * asked_chunks(bytes) * octet * bytes;
  return p;
}

// Cycles of a step's products, which the choice of splits and held decides; an estimate, to compare
// choices.
inline double cluster_cost(const ClusterShape& shape, const ClusterPlan& p) {
  const double warps = p.jobs * p.splits;
  const double read =
      p.jobs * p.stored_before(p.splits) * p.slots * octet * chunk_k * shape.number_bytes / 128;
  const bool all_of_k_twice = shape.stack || (shape.operand_gates > 0 && !shape.backward);
  const double join = p.splits > 1 ? (60 + 8 * p.splits) * shape.products() : 0;
  const double chunks = p.chunks_of(0) * (1 + all_of_k_twice);
  if (!shape.grid) {
    const double of_chunk = shape.exact ? 40. + warps / 4 * p.slots * p.tile * 8
                                        : 33. * shape.number_bytes / 2 * (1 + all_of_k_twice);
    const double chain = p.chunks_of(0) * of_chunk;
    return (read > chain ? read : chain) + join;
  }
  // A product takes one of four tensor cores 6.6 cycles, 62% of its peak; what else a warp does for
  // a chunk, 60, other warps may hide.
  const int at_once = tiles_at_once(shape.number_bytes),
            turns = (shape.tiles + at_once - 1) / at_once;
  const double products = chunks * shape.tiles * ((p.slots + 1) / 2) * shape.number_bytes * 6.6;
  const double chain = chunks * turns * 60 + products;
  const double busy = (p.jobs * p.splits + 3) / 4 * products;
  const double slowest = std::max({read * turns, chain, busy});
  return slowest + join * turns;
}

// The cheapest that fits `shared_limit`; jobs is 0 if none does.
inline ClusterPlan cluster_plan(const ClusterShape& shape, int cluster, int tile,
                                std::int64_t shared_limit) {
  ClusterPlan best{};
  for (const Held held : {Held::most, Held::some, Held::none}) {
    if ((held == Held::none) != shape.exact) continue;
    for (const int splits : {1, 2, 3, 4, 6, 8, 12}) {
      const ClusterPlan p = cluster_plan_of(shape, cluster, tile, splits, held);
      if (p.threads() > thread_limit(held) || p.shared > shared_limit) continue;
      if (best.jobs == 0 || cluster_cost(shape, p) < cluster_cost(shape, best)) best = p;
    }
  }
  return best;
}

}  // namespace fastrnn::cuda
