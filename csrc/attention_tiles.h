// Tiles of attention on the device: rows on their way to shared memory, and a warp's products.
//
// A tile is 16 rows by 8 columns. Lane 4 * group + place holds, as number e of its four, that of
// row 8 * (e / 2) + group and column 2 * place + e % 2: what mma leaves there, and the float32 and
// float64 products follow.
#pragma once

#include "attention_plan.h"
#include "device_rows.h"

namespace fastrnn::cuda {

template <class S, int M, int N>
struct Tiles {
  S d[M][N][4];

  // Calls act(m, n, e, d[m][n][e]) for each.
  template <class Act>
  __device__ __forceinline__ void each(const Act& act) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) act(m, n, e, d[m][n][e]);
  }
};

struct Lane {
  int warp, lane, group, place;
  __device__ __forceinline__ explicit Lane(int thread = int(threadIdx.x))
      : warp(thread / 32), lane(thread % 32), group(lane / 4), place(lane % 4) {}
  // The same, made anew: what follows from it in a loop is not kept in registers from before it.
  static __device__ __forceinline__ Lane afresh() {
    int thread = int(threadIdx.x);
    make_now(thread);
    return Lane(thread);
  }
  __device__ __forceinline__ int row(int m, int half) const { return 16 * m + 8 * half + group; }
  __device__ __forceinline__ int column(int n, int e) const { return 8 * n + 2 * place + e; }
};

// One batch's head; as many blocks as there are pairs of them have 32 bits.
struct Pair {
  unsigned number, batch, head;
  __device__ __forceinline__ Pair(unsigned number, Index heads)
      : number(number), batch(number / unsigned(heads)), head(number % unsigned(heads)) {}
  __device__ __forceinline__ Index in(const Heads& tensor) const {
    return batch * tensor.batch + head * tensor.head;
  }
};

// Rows of one head's tensor in the device's memory.
template <class T>
struct Source {
  T* data;
  Index row, count;  // values from row to row; rows
  int width;         // values of a row
  bool aligned;      // rows are whole and aligned pieces of 16 bytes

  __device__ __forceinline__ Source(const Heads& tensor, const Pair& pair, Index count, Index width)
      : data(static_cast<T*>(tensor.data) + pair.in(tensor)),
        row(tensor.row),
        count(count),
        width(int(width)) {
    const Index bytes = Index(sizeof(T));
    aligned = (reinterpret_cast<std::uintptr_t>(data) | std::uintptr_t(row * bytes) |
               std::uintptr_t(width * bytes)) %
                  16 ==
              0;
  }
};

// Rows from `first` on, columns from `from` on, to `rows` rows of `padded` values that are Stride
// apart; zeros beyond the tensor. Done after wait_copies and a barrier.
template <int Stride, class T>
__device__ __forceinline__ void fetch(const Source<T>& source, Index first, int rows, int from,
                                      T* to, int padded) {
  constexpr int V = 16 / int(sizeof(T)), pieces = Stride / V - 1,
                across = pieces < 32 ? pieces : 32;
  const int thread = int(threadIdx.x), down = int(blockDim.x) / across;  // rows at once
  const Index left = source.count - first;
#pragma unroll 1
  for (int piece = thread % across; piece < padded / V; piece += across) {
    int r = thread / across;
    const int column = from + piece * V;
    const int inside = column >= source.width ? 0 : left < rows ? int(left) : rows;
    const T* values = source.data + (first + r) * source.row + column;
    T* place = to + r * Stride + piece * V;
    const auto each = [&](const auto& copy) {
      for (; r < rows; r += down, values += down * source.row, place += down * Stride) copy();
    };
    if (source.aligned)
      each([&] { copy_async(place, values, r >= inside); });
    else
      each([&] {
#pragma unroll
        for (int i = 0; i < V; ++i)
          place[i] = r < inside && column + i < source.width ? values[i] : T{};
      });
  }
}

// sums += a b^T: rows of `width` > 0 values, a's 16 * M and b's 8 * N, that are Stride apart.
template <int Stride, class T, class S, int M, int N>
__device__ __forceinline__ void multiply_rows(const Lane& at, const T* a, const T* b, int width,
                                              Tiles<S, M, N>& sums) {
  if constexpr (sizeof(T) == 2) {
    const int lane = at.lane;
    a += lane % 16 * Stride + lane / 16 * 8;
    b += (lane % 8 + lane / 16 * 8) * Stride + lane / 8 % 2 * 8;
    int k = 0;
#pragma unroll 2
    do {
      std::uint32_t left[M][4], right[4];
#pragma unroll
      for (int m = 0; m < M; ++m) load_matrices<false>(left[m], a + 16 * m * Stride + k);
#pragma unroll
      for (int n = 0; n < N; n += 2) {
        load_matrices<false>(right, b + 8 * n * Stride + k);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const std::uint32_t half[2] = {right[2 * i], right[2 * i + 1]};
            mma<T>(sums.d[m][n + i], left[m], half);
          }
      }
    } while ((k += 16) < width);
  } else {
    constexpr int V = 16 / int(sizeof(T));
    for (int k = 0; k < width; k += V) {
      Packet<T, V> left[M][2];
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) left[m][h] = load<T, V>(a + at.row(m, h) * Stride + k);
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const auto right = load<T, V>(b + at.column(n, e) * Stride + k);
#pragma unroll
          for (int m = 0; m < M; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
              for (int i = 0; i < V; ++i)
                sums.d[m][n][2 * h + e] += left[m][h].values[i] * right.values[i];
        }
    }
  }
}

// sums += weights b: b's 8 * N rows, columns from b on.
template <int Stride, class T, class S, int M, int N, int C>
__device__ __forceinline__ void multiply_columns(const Lane& at, const Tiles<S, M, N>& weights,
                                                 const T* b, Tiles<S, M, C>& sums) {
  if constexpr (sizeof(T) == 2) {
    b += at.lane % 16 * Stride + at.lane / 16 * 8;
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      std::uint32_t left[M][4], right[4];
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* const pair = weights.d[m][n + i / 2] + i % 2 * 2;
          left[m][i] = pair_of(pair[0], pair[1], T{});
        }
#pragma unroll
      for (int c = 0; c < C; c += 2) {
        load_matrices<true>(right, b + 8 * n * Stride + 8 * c);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const std::uint32_t half[2] = {right[2 * i], right[2 * i + 1]};
            mma<T>(sums.d[m][c + i], left[m], half);
          }
      }
    }
  } else {
    // A row's weights go round the four lanes that share it.
#pragma unroll
    for (int n = 0; n < N; ++n)
      for (int from = 0; from < 4; ++from)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          S left[M][2];
#pragma unroll
          for (int m = 0; m < M; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h)
              left[m][h] = shuffle(weights.d[m][n][2 * h + e], at.group * 4 + from);
          const T* const row = b + (8 * n + 2 * from + e) * Stride + 2 * at.place;
#pragma unroll
          for (int c = 0; c < C; ++c) {
            const auto right = load<T, 2>(row + 8 * c);
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
              for (int i = 0; i < 4; ++i) sums.d[m][c][i] += left[m][i / 2] * right.values[i % 2];
          }
        }
  }
}

// The sums of a row's four lanes.
template <class S>
__device__ __forceinline__ S row_sum(S value) {
  value += shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}

// Stores a warp's sums times `factor` of its row; columns from `from` on.
template <class T, class S, int M, int C, class Factor>
__device__ __forceinline__ void put_rows(const Lane& at, const Tiles<S, M, C>& sums, Index first,
                                         int from, const Source<T>& to, const Factor& factor) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Index r = first + at.row(m, h);
      if (r >= to.count) continue;
#pragma unroll
      for (int c = 0; c < C; ++c)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (const int column = from + at.column(c, e); column < to.width)
            narrow(sums.d[m][c][2 * h + e] * factor(m, h), to.data + r * to.row + column);
    }
}

}  // namespace fastrnn::cuda
