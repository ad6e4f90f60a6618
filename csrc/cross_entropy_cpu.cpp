// Linear layer, softmax and cross entropy in one pass over chunks of rows, so that the logits
// [M, V] are never whole in memory; with gradients, a chunk's softmax is turned into them at once.
// Logits are held transposed, classes by rows: lanes are rows, so that a row's statistics are sums
// lane by lane, and the weight is read as it lies, one value for all lanes. Built once per
// instruction set (FASTRNN_ISA).
#include "gemm_cpu.h"
#include "kernels_cpu.h"
#include "workspace.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
class CrossEntropyLoop {
  using V = Vec<T>;
  static constexpr Index w = V::width;
  static constexpr int NR = 3, NK = 2;  // vectors of a panel: of rows, of features
  static constexpr Index lanes = NR * w, R = tile_rows<NR>;
  // Classes whose exponentials are taken against one largest logit; every tile's height divides it.
  static constexpr Index block = 96;
  static constexpr Index slice = 2 * block, parts = 2;  // of a sum over classes
  static constexpr Index chunk_bytes = Index(6) << 20,  // of logits: within the last cache
      hidden_bytes = Index(1) << 20;                    // of hidden states: the second one's

 public:
  CrossEntropyLoop(const CrossEntropy& args, char* workspace, int threads)
      : s_(args), arena_(workspace), blocks_(ceil_div(args.classes, block)) {
    const Index M = s_.rows, K = s_.features, C = s_.classes;
    const Index vectors = ceil_div(M, w), vector_bytes_of_row = w * Index(sizeof(T));
    const Index fits = smaller(chunk_bytes / (C * vector_bytes_of_row),
                               hidden_bytes / (larger(K, 1) * vector_bytes_of_row));
    const Index chunks = ceil_div(vectors, larger(NR, fits));
    chunk_ = ceil_div(vectors, chunks) * w;
    panels_ = ceil_div(chunk_, lanes);
    stride_ = panels_ * lanes;
    const bool gradients = s_.grad_hidden != nullptr;
    hidden_lanes_ = arena_.template take<T>(K * stride_);
    logits_ = arena_.template take<T>((gradients ? C : block * threads) * stride_);
    highest_ = arena_.template take<T>(blocks_ * stride_);
    sums_ = arena_.template take<T>(blocks_ * stride_);
    shifts_ = arena_.template take<T>(blocks_ * stride_);
    target_logits_ = arena_.template take<T>(stride_);
    if (!gradients) return;
    row_scales_ = arena_.template take<T>(stride_);
    hidden_panels_ = arena_.template take<T>(ceil_div(K, NK * w) * NK * w * chunk_);
    grad_block_ = arena_.template take<T>(block * stride_ * threads);
    grad_tiles_ = arena_.template take<T>(parts * ceil_div(K, R) * R * stride_);
  }

  Index bytes() const { return arena_.bytes(); }

  void run(const Team& team) const {
    for (Index row0 = 0; row0 < s_.rows; row0 += chunk_) {
      const Chunk chunk{row0, smaller(chunk_, s_.rows - row0)};
      pack_hidden(team, chunk);
      team.wait();
      for (Index b = team.begin(blocks_); b < team.end(blocks_); ++b) exponentials(team, chunk, b);
      team.wait();
      const Index vectors = ceil_div(chunk.rows, w);
      for (Index v = team.begin(vectors); v < team.end(vectors); ++v) losses(chunk, v * w);
      if (!s_.grad_hidden) continue;
      team.wait();
      for (Index b = team.begin(blocks_); b < team.end(blocks_); ++b) grad_weight(team, chunk, b);
      team.wait();
      sum_over_classes(team, chunk);
      team.wait();
      grad_hidden(team, chunk);
    }
  }

 private:
  struct Chunk {
    Index row0, rows;
    int used(Index panel) const {  // vectors
      return int(smaller(NR, ceil_div(rows - panel * lanes, w)));
    }
    Index panels() const { return ceil_div(rows, lanes); }
  };

  const T* hidden(Index row) const { return static_cast<const T*>(s_.hidden) + row * s_.features; }
  const T* weight(Index row) const { return static_cast<const T*>(s_.weight) + row * s_.features; }
  Index block_classes(Index b) const { return smaller(block, s_.classes - b * block); }

  // A block's part of the bias, zeros where there is none.
  const T* bias(Index b) const {
    static constexpr T zeros[block] = {};
    return s_.bias ? static_cast<const T*>(s_.bias) + b * block : zeros;
  }

  // A block's logits of a panel of rows, [classes][lanes]; without gradients they are not kept.
  T* logits(const Team& team, Index b, Index panel) const {
    if (s_.grad_hidden) return logits_ + (panel * s_.classes + b * block) * lanes;
    return logits_ + (team.rank * panels_ + panel) * block * lanes;
  }

  // Has the processor read `count` values that are needed soon.
  static void fetch(const T* p, Index count) {
    for (Index i = 0; i < count; i += w) __builtin_prefetch(p + i, 0, 2);
  }

  // A tile of up to R rows by `used` vectors of a panel of rows.
  template <int Used = NR>
  static void tile_of_rows(int used, Index rows, const T* a, Index row_stride, Index k_stride,
                           const T* panel, Index k, T* tile, bool accumulate) {
    if (used == Used)
      with_rows<T, NR, Used>(rows, rows, a, row_stride, k_stride, panel, k, tile, accumulate,
                             lanes);
    else if constexpr (Used > 1)
      tile_of_rows<Used - 1>(used, rows, a, row_stride, k_stride, panel, k, tile, accumulate);
  }

  // The hidden states in both orders: lanes along rows, and along features.
  void pack_hidden(const Team& team, const Chunk& chunk) const {
    const Index K = s_.features, vectors = chunk.panels() * NR;
    for (Index v = team.begin(vectors); v < team.end(vectors); ++v)
      pack_columns_transposed(hidden(chunk.row0 + v * w), K, chunk.rows - v * w, K,
                              hidden_lanes_ + v / NR * K * lanes + v % NR * w, lanes);
    if (s_.grad_hidden)
      pack_rows<T, NK>(
          team, K, chunk.rows, [&](Index row) { return hidden(chunk.row0 + row); }, hidden_panels_);
  }

  // exp(x - highest) of a block's logits x, with the sums over its classes.
  void exponentials(const Team& team, const Chunk& chunk, Index b) const {
    const Index K = s_.features, classes = block_classes(b);
    const Index slices = larger(1, ceil_div(K, sum_slice));
    for (Index panel = 0; panel < chunk.panels(); ++panel) {
      T* const x = logits(team, b, panel);
      for (Index c = 0; c < classes; c += R)
        for (Index i = 0; i < slices; ++i) {
          const Index k0 = K * i / slices, depth = K * (i + 1) / slices - k0;
          tile_of_rows(chunk.used(panel), smaller(R, classes - c), weight(b * block + c) + k0, K, 1,
                       hidden_lanes_ + (panel * K + k0) * lanes, depth, x + c * lanes, i > 0);
        }
      const Index row0 = panel * lanes;
      for (Index row = row0; row < smaller(chunk.rows, row0 + lanes); ++row) {
        const Index target = s_.target[chunk.row0 + row] - b * block;
        if (target >= 0 && target < classes)
          target_logits_[row] = x[target * lanes + row - row0] + bias(b)[target];
      }
      block_statistics(chunk.used(panel), b, x, b * stride_ + row0);
    }
  }

  // Of one panel of rows; `place` is theirs in what is kept per block and row.
  template <int Used = NR>
  void block_statistics(int used, Index b, T* x, Index place) const {
    if (used < Used) {
      if constexpr (Used > 1) block_statistics<Used - 1>(used, b, x, place);
      return;
    }
    const Index classes = block_classes(b);
    V high[Used], sum[Used], shifted[Used];
    for (int v = 0; v < Used; ++v)
      high[v] = V(-T(__builtin_inf())), sum[v] = V(T(0)), shifted[v] = V(T(0));
    for (Index c = 0; c < classes; ++c) {
      const V shift(bias(b)[c]);
#pragma GCC unroll 4
      for (int v = 0; v < Used; ++v) {
        const V here = V::load(x + c * lanes + v * w) + shift;
        here.store(x + c * lanes + v * w);
        high[v] = Larger()(high[v], here);
      }
    }
    for (int v = 0; v < Used; ++v) {
      high[v].store(highest_ + place + v * w);
      // -inf - -inf would be NaN, where there are others than this block's.
      const V none(-T(__builtin_inf()));
      high[v].v = high[v].v == none.v ? typename V::Register{} : high[v].v;
    }
    if (s_.label_smoothing > 0)
      for (Index c = 0; c < classes; ++c)
        for (int v = 0; v < Used; ++v)
          shifted[v] = shifted[v] + (V::load(x + c * lanes + v * w) - high[v]);
    for (Index c = 0; c < classes; ++c)
#pragma GCC unroll 4
      for (int v = 0; v < Used; ++v) {
        const V e = exp_negative(V::load(x + c * lanes + v * w) - high[v]);
        e.store(x + c * lanes + v * w);
        sum[v] = sum[v] + e;
      }
    for (int v = 0; v < Used; ++v) {
      sum[v].store(sums_ + place + v * w);
      shifted[v].store(shifts_ + place + v * w);
    }
  }

  // The losses of the vector of rows at `row`; the blocks' sums become the factors that make their
  // exponentials the softmax's gradient.
  void losses(const Chunk& chunk, Index row) const {
    const T scale = T(s_.scale), smoothing = T(s_.label_smoothing);
    V most(-T(__builtin_inf())), total(T(0)), shifted(T(0));
    for (Index b = 0; b < blocks_; ++b)
      most = Larger()(most, V::load(highest_ + b * stride_ + row));
    for (Index b = 0; b < blocks_; ++b) {
      const Index place = b * stride_ + row;
      const V down = V::load(highest_ + place) - most, sum = V::load(sums_ + place);
      total = total + sum * exp_negative(down);
      if (smoothing > 0)
        shifted = shifted + (V::load(shifts_ + place) + down * V(T(block_classes(b))));
    }
    alignas(64) T scales[w];
    for (Index r = 0; r < w; ++r) {
      scales[r] = T(0);
      if (row + r >= chunk.rows) continue;
      T& loss = static_cast<T*>(s_.losses)[chunk.row0 + row + r];
      loss = 0 * scale;  // NaN where no row counts, as a mean of none is in torch
      if (s_.target[chunk.row0 + row + r] == s_.ignore_index) continue;
      scales[r] = scale;
      const T sum = T(__builtin_log(double(total.v[r])));
      loss = scale * (sum - (1 - smoothing) * (target_logits_[row + r] - most.v[r]));
      // Not 0 * shifted: that may be infinite.
      if (smoothing > 0) loss -= scale * smoothing * (shifted.v[r] / T(s_.classes));
    }
    if (!s_.grad_hidden) return;
    const V row_scale = V::load(scales);
    row_scale.store(row_scales_ + row);
    for (Index b = 0; b < blocks_; ++b) {
      const Index place = b * stride_ + row;
      (exp_negative(V::load(highest_ + place) - most) * row_scale / total).store(sums_ + place);
    }
  }

  // A block's logits become their own gradient, scale (softmax - (1 - smoothing) onehot -
  // smoothing / V), and its product with the hidden states that of the weight.
  void grad_weight(const Team& team, const Chunk& chunk, Index b) const {
    const Index K = s_.features, classes = block_classes(b), vectors = ceil_div(chunk.rows, w);
    const bool accumulate = chunk.row0 > 0;
    T* const grad = grad_block_ + team.rank * block * stride_;
    const T smoothing = T(s_.label_smoothing);
    for (Index panel = 0; panel < chunk.panels(); ++panel)
      scale_panel(chunk.used(panel), logits(team, b, panel), classes, b * stride_ + panel * lanes,
                  panel * lanes, grad + panel * lanes);
    for (Index row = 0; row < chunk.rows; ++row) {
      const Index target = s_.target[chunk.row0 + row] - b * block;
      if (target < 0 || target >= classes) continue;
      T& here = grad[target * stride_ + row];
      here -= (1 - smoothing) * row_scales_[row];
      logits(team, b, row / lanes)[target * lanes + row % lanes] = here;
    }
    if (T* const bias = static_cast<T*>(s_.grad_bias))
      for (Index c = 0; c < classes; ++c) {
        V sum(T(0));
        for (Index v = 0; v < vectors; ++v) sum = sum + V::load(grad + c * stride_ + v * w);
        T& into = bias[b * block + c];
        into = (accumulate ? into : T(0)) + across(sum, Add());
      }
    for (Index c = 0; c < classes; c += tile_rows<NK>)
      for (Index panel = 0; panel < ceil_div(K, NK * w); ++panel)
        weight_tile(grad + c * stride_, smaller(tile_rows<NK>, classes - c), chunk.rows, panel,
                    static_cast<T*>(s_.grad_weight) + (b * block + c) * K, accumulate);
  }

  template <int Used = NR>
  void scale_panel(int used, T* x, Index classes, Index place, Index row, T* grad) const {
    if (used < Used) {
      if constexpr (Used > 1) scale_panel<Used - 1>(used, x, classes, place, row, grad);
      return;
    }
    V factor[Used], scale[Used], flat[Used];
    for (int v = 0; v < Used; ++v) {
      factor[v] = V::load(sums_ + place + v * w);
      scale[v] = V::load(row_scales_ + row + v * w);
      flat[v] = scale[v] * V(T(s_.label_smoothing) / T(s_.classes));
    }
    for (Index c = 0; c < classes; ++c)
#pragma GCC unroll 4
      for (int v = 0; v < Used; ++v) {
        const V y = where_positive(scale[v], V::load(x + c * lanes + v * w) * factor[v]) - flat[v];
        y.store(x + c * lanes + v * w);
        y.store(grad + c * stride_ + v * w);
      }
  }

  // out [count, K], from its column `panel` on, = or += grad [count, rows] hidden [rows, K].
  void weight_tile(const T* grad, Index count, Index rows, Index panel, T* out,
                   bool accumulate) const {
    const Index K = s_.features, column = panel * NK * w, left = K - column;
    const T* const packed = hidden_panels_ + column * rows;
    for (Index r = 0; r < count; ++r) {
      __builtin_prefetch(out + r * K + column, 1, 3);
      __builtin_prefetch(out + r * K + column + w, 1, 3);
    }
    if (left >= NK * w)
      return tile_product<T, NK>(NK, count, grad, stride_, 1, packed, rows, out + column,
                                 accumulate, K);
    alignas(64) T tile[tile_rows<NK> * NK * w];
    tile_product<T, NK>(vectors_used<NK>(ceil_div(left, w)), count, grad, stride_, 1, packed, rows,
                        tile, false);
    for (Index r = 0; r < count; ++r)
      for (Index v = 0; v * w < left; ++v) {
        T* const here = out + r * K + column + v * w;
        const V before = V::load(here, accumulate ? left - v * w : 0);
        (before + V::load(tile + (r * NK + v) * w)).store(here, left - v * w);
      }
  }

  // Sums over a part of the classes, tile by tile of features by rows; with two threads each has
  // the part whose logits it made. A slice's rows of the weight serve all tiles from the cache.
  void sum_over_classes(const Team& team, const Chunk& chunk) const {
    const Index K = s_.features, panels = chunk.panels(), tiles = ceil_div(K, R) * panels;
    for (Index part = 0; part < parts; ++part) {
      const Index begin = larger(team.begin(parts * tiles) - part * tiles, 0),
                  count = smaller(team.end(parts * tiles) - part * tiles, tiles) - begin;
      const Index first = blocks_ * part / parts * block,
                  last = smaller(s_.classes, blocks_ * (part + 1) / parts * block);
      // A part without classes, of few, still gets its zeros.
      for (Index c = first; count > 0 && (c == first || c < last); c += slice) {
        const T* const next = weight(c + slice);
        const Index ahead = larger(0, smaller(slice, last - c - slice)) * K;
        for (Index i = 0; i < count; ++i) {
          const Index tile = begin + i, k = tile / panels * R, panel = tile % panels;
          fetch(next + ahead * i / count, ahead / count);
          tile_of_rows(chunk.used(panel), smaller(R, K - k), weight(c) + k, 1, K,
                       logits(team, 0, panel) + c * lanes, smaller(slice, last - c),
                       grad_tile(part * tiles + tile), c > first);
        }
      }
    }
  }

  T* grad_tile(Index i) const { return grad_tiles_ + i * R * lanes; }

  void grad_hidden(const Team& team, const Chunk& chunk) const {
    const Index K = s_.features, panels = chunk.panels(), tiles = ceil_div(K, R) * panels;
    for (Index tile = team.begin(tiles); tile < team.end(tiles); ++tile) {
      const Index k = tile / panels * R, row0 = tile % panels * lanes;
      T* const out = static_cast<T*>(s_.grad_hidden) + (chunk.row0 + row0) * K + k;
      for (Index r = 0; r < smaller(lanes, chunk.rows - row0); ++r)
        for (Index i = 0; i < smaller(R, K - k); ++i) {
          T sum = 0;
          for (Index part = 0; part < parts; ++part)
            sum += grad_tile(part * tiles + tile)[i * lanes + r];
          out[r * K + i] = sum;
        }
    }
  }

  const CrossEntropy& s_;
  Arena arena_;
  const Index blocks_;
  Index chunk_, panels_, stride_;  // rows of a chunk, their panels, and with the last one full
  T *hidden_lanes_, *logits_, *highest_, *sums_, *shifts_, *target_logits_;
  T *row_scales_ = nullptr, *hidden_panels_ = nullptr, *grad_block_ = nullptr,
    *grad_tiles_ = nullptr;
};

template <class T>
constexpr Kernel<CrossEntropy> cross_entropy_kernel = kernel<CrossEntropyLoop<T>, CrossEntropy>;

const Kernel<CrossEntropy>* cross_entropy(int dtype_bytes) {
  return dtype_bytes == 4 ? &cross_entropy_kernel<float> : &cross_entropy_kernel<double>;
}

}  // namespace fastrnn::FASTRNN_ISA
