// Where a thread of a persistent kernel is, and what its warp hands to other blocks.
#pragma once

#include "cluster_plan.h"
#include "device_rows.h"

namespace fastrnn::cuda {

// What a schedule's shapes have in common.
template <class T, class Cell>
constexpr ClusterShape cell_shape(bool backward, bool exact, std::int64_t hidden_size) {
  return {Cell::gates, Cell::states, Cell::operand_gates, device::biases<Cell>, int(sizeof(T)),
          backward,    exact,        hidden_size};
}

// Where this thread is, its block's shared memory, and the sequences it is at.
struct ClusterPlace {
  int lane, group, place, job, part;
  int rank;   // of the block among those that share k
  int piece;  // of the job's chunks
  int first_octet;
  int tile = 0, first_sequence = 0;
  unsigned char* shared;

  // block: among those that hold W_hh.
  __device__ __forceinline__ ClusterPlace(const ClusterPlan& p, unsigned char* shared, int block)
      : lane(int(threadIdx.x) % 32),
        group(lane / 4),
        place(lane % 4),
        job(int(threadIdx.x) / 32 % p.jobs),
        part(int(threadIdx.x) / 32 / p.jobs),
        rank(block % p.share),
        piece(rank * p.splits + part),
        first_octet((block - rank) * p.octets()),
        shared(shared) {}

  __device__ __forceinline__ void turn_to(const ClusterPlan& p, int next_tile) {
    tile = next_tile, first_sequence = tile * p.tile;
  }

  // The lane's own place for number i of the Count that its job has for a tile.
  template <int Count>
  __device__ __forceinline__ float& own(const ClusterPlan& p, int i) const {
    float* const numbers = reinterpret_cast<float*>(shared + p.state);
    return numbers[((tile * p.own + job) * Count + i) * 32 + lane];
  }

  // The sequence in the tile of the lane's element e.
  __device__ __forceinline__ int column(int e) const { return place * 2 + e; }
  // The first unit of the job's octet o.
  __device__ __forceinline__ int unit_of(const ClusterPlan& p, int o) const {
    return (first_octet + job * p.octets_of_job + o) * octet;
  }
  // The rows [tile, stride] of k in buffer i % p.buffers.
  template <class T>
  __device__ __forceinline__ T* rows(const ClusterPlan& p, Index i) const {
    return reinterpret_cast<T*>(shared + p.rows) + (i & (p.buffers - 1)) * p.tile * p.stride;
  }
};

// Copies what a warp has staged, [tile, Count] numbers, to the same place of the rows of `peers`
// blocks, of Most that there can be; `to` is where among this block's. Lanes take the pieces of a
// row, then peers, then rows: no step waits for a division by what only the plan knows.
template <int Count, int Most, class T, class Peer>
__device__ __forceinline__ void spread(const ClusterPlan& p, const ClusterPlace& at,
                                       const T* staged, T* to, int peers, const Peer& peer_of) {
  constexpr int width = 16 / int(sizeof(T)), pieces = Count / width, fit = 32 / pieces;
  constexpr int at_once = Most < fit ? Most : fit, rows = fit / at_once;
  const int piece = at.lane % pieces * width, first = at.lane / pieces % at_once;
  const int row = at.lane / (pieces * at_once);
  if (row >= rows) return;
  for (int n = row; n < p.tile; n += rows) {
    const auto packet = load<T, width>(staged + n * Count + piece);
    T* const mine = to + n * p.stride + piece;
#pragma unroll
    for (int peer = first; peer < first + Most; peer += at_once)
      if (peer < peers) store(packet, peer_of(mine, peer));
  }
}

template <int Count, class T>
__device__ __forceinline__ void broadcast(const ClusterPlan& p, const ClusterPlace& at,
                                          const T* staged, T* to) {
  const auto peer_of = [](T* mine, int peer) { return cluster_peer(mine, unsigned(peer)); };
  spread<Count, most_peers>(p, at, staged, to, p.cluster, peer_of);
}

// The same to rows in device memory.
template <int Count, class T>
__device__ __forceinline__ void store_rows(const ClusterPlan& p, const ClusterPlace& at,
                                           const T* staged, T* to) {
  spread<Count, 1>(p, at, staged, to, 1, [](T* mine, int) { return mine; });
}

}  // namespace fastrnn::cuda
