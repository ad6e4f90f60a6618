// Where a lane gets its pieces of the rows of k that blocks have exchanged.
#pragma once

#include <cstring>

#include "cluster_place.h"

namespace fastrnn::cuda {

// Eight neighbours of a row of k; what is read or written at once is a piece of it.
template <class T>
struct alignas(16) Run {
  T values[octet];
};
template <class T>
constexpr int pieces = int(sizeof(Run<T>)) / 16;
template <class T>
constexpr int piece = octet / pieces<T>;  // numbers

template <class T>
__device__ __forceinline__ Run<T> load_run(const T* from) {
  return at_once<const Run<T>>(from);
}
// The same where the pieces of a warp's lanes lie side by side.
template <class T>
__device__ __forceinline__ Run<T> load_pieces(const T* from) {
  Run<T> run;
#pragma unroll
  for (int i = 0; i < pieces<T>; ++i) {
    const auto part = load<T, piece<T>>(from + i * 32 * piece<T>);
    memcpy(run.values + i * piece<T>, &part, 16);
  }
  return run;
}

// The row of a lane's column. One without a sequence repeats the last; nobody looks at its sums.
__device__ __forceinline__ int row_of(const ClusterPlan& p, const ClusterPlace& at) {
  return at.group < p.tile ? at.group : p.tile - 1;
}

// From the block's shared memory.
template <class T>
struct Near {
  const T* rows;
  int mine, stride;

  __device__ __forceinline__ Near(const ClusterPlan& p, const ClusterPlace& at, const T* rows)
      : rows(rows + at.place * octet), mine(row_of(p, at) * p.stride), stride(p.stride) {}

  __device__ __forceinline__ Run<T> of(int n, int chunk) const {
    return load_run(rows + n * stride + chunk * chunk_k);
  }
  __device__ __forceinline__ Run<T> take(int chunk) const {
    return load_run(rows + mine + chunk * chunk_k);
  }
};

// From the device's memory, hundreds of cycles away: a lane asks for what it will multiply some
// chunks ahead, through all tiles, and it comes to places of its own in shared memory.
template <class T>
class Ahead {
 public:
  // Of the warp's chunks from `begin` to `end`.
  __device__ __forceinline__ Ahead(const ClusterPlan& p, const ClusterPlace& at, int begin,
                                   int end) {
    const int many = p.pieces(), late = begin > at.piece ? begin - at.piece : 0;
    const int first = at.piece + (late + many - 1) / many * many;
    count_ = first < end ? (end - first + many - 1) / many : 0;
    step_ = unsigned(many * chunk_k);
    offset_ = row_of(p, at) * p.stride + at.place * octet + first * chunk_k;
    to_next_tile_ = unsigned(p.tile * p.stride - (count_ - 1) * many * chunk_k);
    const int warp = int(threadIdx.x) / 32;
    places_ =
        reinterpret_cast<T*>(at.shared + p.ahead) + warp * asked * of_chunk + at.lane * piece<T>;
  }

  // Asks for the first chunks of rows [tiles * tile, stride].
  __device__ __forceinline__ void start(const T* rows, int tiles) {
    next_ = rows + offset_, left_in_tile_ = count_, left_ = count_ * tiles, place_ = 0;
#pragma unroll
    for (int i = 0; i < asked; ++i) ask();
  }

  // The next one, whatever its number.
  __device__ __forceinline__ Run<T> take(int) {
    wait_copies<asked - 1>();
    const Run<T> run = load_pieces(places_ + place_);
    ask();
    return run;
  }

 private:
  static constexpr int asked = asked_chunks(sizeof(T)), of_chunk = 32 * octet;

  // Into the place that was read last.
  __device__ __forceinline__ void ask() {
    if (left_ > 0)
#pragma unroll
      for (int i = 0; i < pieces<T>; ++i)
        copy_cached(places_ + place_ + i * 32 * piece<T>, next_ + i * piece<T>);
    end_copies();  // as many groups as chunks, be they empty
    const bool last = --left_in_tile_ == 0;
    next_ += last ? to_next_tile_ : step_;
    if (last) left_in_tile_ = count_;
    --left_;
    place_ = (place_ + of_chunk) % unsigned(asked * of_chunk);
  }

  T* places_;
  const T* next_;
  int count_, offset_, left_, left_in_tile_;
  unsigned step_, to_next_tile_;  // from a chunk to the next
  unsigned place_;
};

}  // namespace fastrnn::cuda
