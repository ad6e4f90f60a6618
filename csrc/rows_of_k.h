// Where a lane gets its pieces of the rows of k that blocks have exchanged.
#pragma once

#include <cstring>
#include <type_traits>

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

  // Calls act(how many tiles there are, as a std::integral_constant).
  template <class Act>
  __device__ __forceinline__ void with_tiles(const Act& act) const {
    act(std::integral_constant<int, 1>{});
  }
  // Each tile's run of a chunk.
  __device__ __forceinline__ void take(int chunk, Run<T> (&runs)[1]) const {
    runs[0] = load_run(rows + mine + chunk * chunk_k);
  }
};

// From the device's memory, hundreds of cycles away, and of several tiles at once: a lane asks for
// what it will multiply some chunks ahead, and it comes to places of its own in shared memory.
template <class T>
class Ahead {
 public:
  static constexpr int at_once = tiles_at_once(sizeof(T));

  // Of the warp's chunks from `begin` to `end`.
  __device__ __forceinline__ Ahead(const ClusterPlan& p, const ClusterPlace& at, int begin,
                                   int end) {
    const int many = p.pieces(), late = begin > at.piece ? begin - at.piece : 0;
    const int first = at.piece + (late + many - 1) / many * many;
    count_ = first < end ? (end - first + many - 1) / many : 0;
    step_ = unsigned(many * chunk_k);
    to_next_tile_ = unsigned(p.tile * p.stride);
    offset_ = row_of(p, at) * p.stride + at.place * octet + first * chunk_k;
    const int warp = int(threadIdx.x) / 32;
    places_ =
        reinterpret_cast<T*>(at.shared + p.ahead) + warp * asked * of_chunk + at.lane * piece<T>;
  }

  // Asks for the first chunks of rows [tiles * tile, stride], as many of the tiles as it takes at
  // once.
  __device__ __forceinline__ void start(const T* rows, int tiles) {
    next_ = rows + offset_, left_ = count_, place_ = 0;
    tiles_ = tiles < at_once ? tiles : tiles == 4 ? 2 : at_once;  // rather 2 and 2 than 3 and 1
    with_tiles([&](auto number) {
      constexpr int many = decltype(number)::value;
#pragma unroll
      for (int i = 0; i < depth(many); ++i) ask<many>();
    });
  }

  template <class Act>
  __device__ __forceinline__ void with_tiles(const Act& act) const {
    if (tiles_ == 1) return act(std::integral_constant<int, 1>{});
    if (tiles_ == 2) return act(std::integral_constant<int, 2>{});
    act(std::integral_constant<int, at_once>{});
  }
  __device__ __forceinline__ int tiles() const { return tiles_; }
  // Of the next chunk, whatever its number.
  template <int Many>
  __device__ __forceinline__ void take(int, Run<T> (&runs)[Many]) {
    wait_copies<depth(Many) - 1>();
#pragma unroll
    for (int t = 0; t < Many; ++t) runs[t] = load_pieces(places_ + place_ + t * of_chunk);
    ask<Many>();
  }

 private:
  static constexpr int asked = asked_chunks(sizeof(T)), of_chunk = 32 * octet;

  // Places that a chunk takes, and chunks asked for.
  static FASTRNN_INLINE constexpr int width(int tiles) { return tiles == 3 ? 4 : tiles; }
  static FASTRNN_INLINE constexpr int depth(int tiles) { return asked / width(tiles); }

  // Into the places that were read last.
  template <int Many>
  __device__ __forceinline__ void ask() {
    if (left_-- > 0)
#pragma unroll
      for (int t = 0; t < Many; ++t)
#pragma unroll
        for (int i = 0; i < pieces<T>; ++i)
          copy_cached(places_ + place_ + t * of_chunk + i * 32 * piece<T>,
                      next_ + t * to_next_tile_ + i * piece<T>);
    end_copies();  // as many groups as chunks, be they empty
    next_ += step_;
    place_ = (place_ + width(Many) * of_chunk) % unsigned(asked * of_chunk);
  }

  T* places_;
  const T* next_;
  int count_, offset_, left_, tiles_;
  unsigned step_, to_next_tile_;  // from a chunk to the next
  unsigned place_;
};

}  // namespace fastrnn::cuda
