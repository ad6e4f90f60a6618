// A warp's part of the product of a step: its job's rows of W_hh times the rows of k that the
// cluster's blocks have exchanged.
//
// Lane 4 * group + place holds, of every chunk of 32, the eight weights from k = 8 * place on of
// row `group` of each slot; the sums it ends with are those of row `group` and of the sequences
// 2 * place and 2 * place + 1.
#pragma once

#include "rows_of_k.h"

namespace fastrnn::cuda {

constexpr int elements = columns / 4;  // of a lane, for each of its rows

template <class T, int Slots, Held held, bool stack = false>
class ClusterProduct {
 public:
  // Of chunks in registers.
  static constexpr int Count = held_chunks(held, Slots, sizeof(T), stack);
  static constexpr bool exact = held == Held::none;

  // weights(slot, k) is the Run of row `group` of a slot.
  template <class Weights>
  __device__ __forceinline__ void fill(const ClusterPlan& p, const ClusterPlace& at,
                                       const Weights& weights) {
    const Index before = at.job * p.stored_before(p.splits) + p.stored_before(at.part);
    stored_ = reinterpret_cast<T*>(at.shared) + before * of_chunk + at.lane * piece<T>;
    const auto chunk = [&](int j) {
      return (at.piece + j * p.pieces()) * chunk_k + at.place * octet;
    };
#pragma unroll
    for (int j = 0; j < Count; ++j)
#pragma unroll
      for (int s = 0; s < Slots; ++s) held_[j][s] = rounded(weights(s, chunk(j)));
    for (int j = 0; j < p.stored(at.piece); ++j)
#pragma unroll
      for (int s = 0; s < Slots; ++s)
        put(rounded(weights(s, chunk(Count + j))), s, stored_ + j * of_chunk);
  }

  // `rows` are in the block's shared memory, one tile, or an Ahead of the chunks that a product
  // takes. The sums of Many slots from First on.
  template <int First, int Tiles, int Many, class Rows>
  __device__ __forceinline__ void of_slots(const ClusterPlan& p, const ClusterPlace& at,
                                           Rows&& rows,
                                           float (&sums)[Tiles][Many][elements]) const {
    run<First, false>(p, at, rows, 0, p.chunks, sums);
  }

  // Those of all slots over the chunks of the first product.
  template <int Tiles, class Rows>
  __device__ __forceinline__ void first(const ClusterPlan& p, const ClusterPlace& at, Rows&& rows,
                                        float (&sums)[Tiles][Slots][elements]) const {
    run<0, false>(p, at, rows, 0, p.first_chunks, sums);
  }
  // And over the others; over all if there is one product.
  template <bool Two, int Tiles, class Rows>
  __device__ __forceinline__ void last(const ClusterPlan& p, const ClusterPlace& at, Rows&& rows,
                                       float (&sums)[Tiles][Slots][elements]) const {
    run<0, Two>(p, at, rows, Two ? p.first_chunks : 0, p.chunks, sums);
  }

 private:
  static __device__ __forceinline__ Near<T> source(const ClusterPlan& p, const ClusterPlace& at,
                                                   const T* rows) {
    return {p, at, rows};
  }
  static __device__ __forceinline__ Ahead<T>& source(const ClusterPlan&, const ClusterPlace&,
                                                     Ahead<T>& rows) {
    return rows;
  }

  // Unless Late, `begin` is 0.
  template <int First, bool Late, int Tiles, int Many, class Rows>
  __device__ __forceinline__ void run(const ClusterPlan& p, const ClusterPlace& at, Rows&& rows,
                                      int begin, int end,
                                      float (&sums)[Tiles][Many][elements]) const {
    auto&& from = source(p, at, rows);
    from.with_tiles([&](auto number) {
      constexpr int tiles = decltype(number)::value;
      Sums<tiles, Many> state(p, at);
#pragma unroll
      for (int j = 0; j < Count; ++j) {
        const int c = at.piece + j * p.pieces();
        if (c < end && (!Late || begin <= c)) state.add(from, c, held_[j] + First);
      }
      const T* stored = stored_ + First * of_slot;
      for (int c = at.piece + Count * p.pieces(); c < end; c += p.pieces(), stored += of_chunk) {
        if (Late && c < begin) continue;
        Run<T> weights[Many];
#pragma unroll
        for (int s = 0; s < Many; ++s) weights[s] = load_pieces(stored + s * of_slot);
#pragma unroll
        for (int s = 0; s < Many; s += 2)
          if (woven(First + s)) unweave(weights + s);
        state.add(from, c, weights);
      }
      state.finish(sums);
      if (p.splits > 1) join<First, tiles>(p, at, sums);
    });
  }

  // In shared memory the pieces of the lanes lie side by side. Slots s and s + 1, if a product
  // takes both as a tile, lie there word by word in turn: what is loaded at once is a fragment of
  // the tensor cores, in the registers that it is to be in.
  static constexpr int of_slot = 32 * octet, of_chunk = Slots * of_slot;
  static constexpr int words = int(sizeof(Run<T>)) / 4, together = stack ? Slots / 2 : Slots;
  static FASTRNN_INLINE constexpr bool woven(int s) {
    return !exact && (s % together | 1) < together;
  }
  static __device__ __forceinline__ void put(const Run<T>& run, int s, T* chunk) {
    constexpr int numbers = octet / words;  // of a word
    const int many = 1 + woven(s), turn = s % together % many;
#pragma unroll
    for (int i = 0; i < words; ++i) {
      const int place = (s - turn) * words + i * many + turn;
      store(load<T, numbers>(run.values + i * numbers),
            chunk + (place / 4 * 32 * 4 + place % 4) * numbers);
    }
  }
  static __device__ __forceinline__ void unweave(Run<T>* slots) {
    std::uint32_t from[2 * words], to[2 * words];
    memcpy(from, slots, sizeof from);
#pragma unroll
    for (int i = 0; i < 2 * words; ++i) to[i % 2 * words + i / 2] = from[i];
    memcpy(slots, to, sizeof to);
  }

  // As the tensor cores take them: float32 loses 13 bits.
  static __device__ __forceinline__ Run<T> rounded(Run<T> run) {
    if constexpr (!exact && sizeof(T) == 4)
#pragma unroll
      for (int i = 0; i < octet; ++i) run.values[i] = to_tf32(run.values[i]);
    return run;
  }

  // Tensor cores: two slots are a product's 16 rows. Products that follow each other are of several
  // tiles or, of one tile alone, summed apart: chains that do not wait for each other. The order of
  // k within a chunk is the lanes' own.
  template <int Tiles, int Many>
  struct TensorSums {
    static constexpr int pairs = (Many + 1) / 2, chains = Tiles > 1 ? 1 : 2;
    float d[chains][Tiles][pairs][4] = {};

    __device__ __forceinline__ TensorSums(const ClusterPlan&, const ClusterPlace&) {}

    template <class Rows>
    __device__ __forceinline__ void add(Rows&& rows, int chunk, const Run<T>* weights) {
      std::uint32_t w[2 * pairs][words] = {};
#pragma unroll
      for (int s = 0; s < Many; ++s) memcpy(w[s], &weights[s], sizeof w[s]);
      Run<T> runs[Tiles];
      rows.take(chunk, runs);
      std::uint32_t b[Tiles][words];
#pragma unroll
      for (int t = 0; t < Tiles; ++t) {
        const Run<T> run = rounded(runs[t]);
        memcpy(b[t], &run, sizeof b[t]);
      }
#pragma unroll
      for (int i = 0; i < words; i += 2)
#pragma unroll
        for (int t = 0; t < Tiles; ++t)
#pragma unroll
          for (int s = 0; s < pairs; ++s) {
            const std::uint32_t a[4] = {w[2 * s][i], w[2 * s + 1][i], w[2 * s][i + 1],
                                        w[2 * s + 1][i + 1]};
            const std::uint32_t right[2] = {b[t][i], b[t][i + 1]};
            mma<T>(d[i / 2 % chains][t][s], a, right);
          }
    }

    template <int All>
    __device__ __forceinline__ void finish(float (&sums)[All][Many][elements]) const {
#pragma unroll
      for (int t = 0; t < Tiles; ++t)
#pragma unroll
        for (int s = 0; s < Many; ++s)
#pragma unroll
          for (int e = 0; e < elements; ++e) {
            const int i = s % 2 * 2 + e;
            sums[t][s][e] = d[0][t][s / 2][i];
            if (chains > 1) sums[t][s][e] += d[chains - 1][t][s / 2][i];
          }
    }
  };

  // Exact products: a lane sums its own eighth of every chunk for all sequences, then the four
  // lanes of a row add up.
  template <int Many>
  struct ExactSums {
    float d[Many][columns] = {};
    int tile, place;

    __device__ __forceinline__ ExactSums(const ClusterPlan& p, const ClusterPlace& at)
        : tile(p.tile), place(at.place) {}

    __device__ __forceinline__ void add(const Near<T>& rows, int chunk, const Run<T>* weights) {
#pragma unroll
      for (int n = 0; n < columns; ++n) {
        if (n >= tile) break;
        const Run<T> run = rows.of(n, chunk);
#pragma unroll
        for (int s = 0; s < Many; ++s)
#pragma unroll
          for (int i = 0; i < octet; ++i) d[s][n] += weights[s].values[i] * run.values[i];
      }
    }

    __device__ __forceinline__ void finish(float (&sums)[1][Many][elements]) {
#pragma unroll
      for (int s = 0; s < Many; ++s)
#pragma unroll
        for (int n = 0; n < columns; ++n) {
          d[s][n] += shuffle_xor(d[s][n], 1);
          d[s][n] += shuffle_xor(d[s][n], 2);
          if (n / 2 == place) sums[0][s][n % 2] = d[s][n];
        }
    }
  };

  template <int Tiles, int Many, bool = exact>
  struct Choose {
    using type = ExactSums<Many>;
  };
  template <int Tiles, int Many>
  struct Choose<Tiles, Many, false> {
    using type = TensorSums<Tiles, Many>;
  };
  template <int Tiles, int Many>
  using Sums = typename Choose<Tiles, Many>::type;

  // The sums of the job's other warps, in their order, onto the first one's.
  template <int First, int Tiles, int All, int Many>
  __device__ __forceinline__ void join(const ClusterPlan& p, const ClusterPlace& at,
                                       float (&sums)[All][Many][elements]) const {
    constexpr int all = Slots * elements, count = Many * elements;
    float* const partial = reinterpret_cast<float*>(at.shared + p.partial) +
                           (at.job * (p.splits - 1) * Tiles * all + First * elements) * 32 +
                           at.lane;
    const auto each = [&](int other, const auto& act) {
#pragma unroll
      for (int t = 0; t < Tiles; ++t)
#pragma unroll
        for (int i = 0; i < count; ++i)
          act(partial[((other * Tiles + t) * all + i) * 32], sums[t][i / elements][i % elements]);
    };
    if (at.part > 0) each(at.part - 1, [](float& place, float& sum) { place = sum; });
    __syncthreads();
    if (at.part == 0)
      for (int other = 0; other < p.splits - 1; ++other)
        each(other, [](float& place, float& sum) { sum += place; });
  }

  Run<T> held_[at_least_one<Count>][Slots];
  T* stored_;
};

}  // namespace fastrnn::cuda
