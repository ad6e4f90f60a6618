// Linear layer, softmax and cross entropy in one pass over chunks of rows, so that the logits
// [M, V] are never whole in memory; with gradients, a chunk's softmax is turned into them at once.
// Logits are held transposed, classes by rows: lanes are rows, so that a row's statistics are sums
// lane by lane, and the weight is read as it lies, one value for all lanes. Built once per
// instruction set (FASTRNN_ISA).
//
// Operands of the products are T's: Bf16 is rounded from tensors of float, and sums into such.
#include "gemm_cpu.h"
#include "kernels_cpu.h"
#include "workspace.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
class CrossEntropyLoop {
  using C = Value<T>;
  using V = Vec<C>;
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
    const Index M = s_.rows, K = s_.features, classes = s_.classes;
    const Index vectors = ceil_div(M, w), vector_bytes_of_row = w * Index(sizeof(C));
    const Index fits = smaller(chunk_bytes / (classes * vector_bytes_of_row),
                               hidden_bytes / (larger(K, 1) * vector_bytes_of_row));
    const Index chunks = ceil_div(vectors, larger(NR, fits));
    chunk_ = ceil_div(vectors, chunks) * w;
    panels_ = ceil_div(chunk_, lanes);
    stride_ = panels_ * lanes;
    const bool gradients = s_.grad_hidden != nullptr;
    hidden_lanes_ = arena_.template take<T>(padded<T>(K) * stride_);
    logits_ = arena_.template take<C>((gradients ? classes : block * threads) * stride_);
    highest_ = arena_.template take<C>(blocks_ * stride_);
    sums_ = arena_.template take<C>(blocks_ * stride_);
    shifts_ = arena_.template take<C>(blocks_ * stride_);
    target_logits_ = arena_.template take<C>(stride_);
    if constexpr (rounds<T>) {
      rounded_hidden_ = arena_.template take<T>(chunk_ * K);
      rounded_weight_ = arena_.template take<T>(classes * K);
    }
    if (!gradients) return;
    row_scales_ = arena_.template take<C>(stride_);
    hidden_panels_ = arena_.template take<T>(panel_size<T, NK>(K, chunk_));
    grad_block_ = arena_.template take<T>(block * stride_ * threads);
    grad_tiles_ = arena_.template take<C>(parts * ceil_div(K, R) * R * stride_);
    if constexpr (rounds<T>) {
      grad_groups_ = arena_.template take<T>(padded<T>(classes) * stride_);
      weight_groups_ = arena_.template take<T>(padded<T>(classes) * group_stride());
    }
  }

  Index bytes() const { return arena_.bytes(); }

  void run(const Team& team) const {
    if constexpr (rounds<T>) round_weight(team);
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

  const C* tensor_row(const void* base, Index row) const {
    return static_cast<const C*>(base) + row * s_.features;
  }

  // A row of the chunk, and a class's weights, as the products read them.
  const T* hidden(const Chunk& chunk, Index row) const {
    if constexpr (rounds<T>)
      return rounded_hidden_ + row * s_.features;
    else
      return tensor_row(s_.hidden, chunk.row0 + row);
  }
  const T* weight(Index row) const {
    if constexpr (rounds<T>)
      return rounded_weight_ + row * s_.features;
    else
      return tensor_row(s_.weight, row);
  }

  // The weights of the group of classes from c on, each feature's together.
  const T* weight_group(Index c) const {
    if constexpr (rounds<T>)
      return weight_groups_ + c * group_stride();
    else
      return weight(c);
  }
  Index group_stride() const { return rounds<T> ? ceil_div(s_.features, w) * w : s_.features; }

  void round_weight(const Team& team) const {
    copy(team, s_.classes * s_.features, tensor_row(s_.weight, 0), rounded_weight_);
    if (!s_.grad_hidden) return;
    team.wait();
    const Index K = s_.features, groups = ceil_div(s_.classes, depth<T>);
    for (Index group = team.begin(groups); group < team.end(groups); ++group)
      for (Index k = 0; k < K; k += w) {
        const Index c = group * depth<T>;
        const auto at = [&](Index i) { return weight(c + i) + k; };
        const auto columns = zip_rows<T>(at, s_.classes - c, K - k);
        __builtin_memcpy(weight_groups_ + c * group_stride() + k * depth<T>, &columns.v,
                         sizeof columns.v);
      }
  }

  Index block_classes(Index b) const { return smaller(block, s_.classes - b * block); }

  // A block's part of the bias, zeros where there is none.
  const C* bias(Index b) const {
    static constexpr C zeros[block] = {};
    return s_.bias ? static_cast<const C*>(s_.bias) + b * block : zeros;
  }

  // A block's logits of a panel of rows, [classes][lanes]; without gradients they are not kept.
  C* logits(const Team& team, Index b, Index panel) const {
    if (s_.grad_hidden) return logits_ + (panel * s_.classes + b * block) * lanes;
    return logits_ + (team.rank * panels_ + panel) * block * lanes;
  }

  // Has the processor read `count` values that are needed soon.
  static void fetch(const T* p, Index count) {
    for (Index i = 0; i < count; i += 64 / Index(sizeof(T))) __builtin_prefetch(p + i, 0, 2);
  }

  // A tile of up to R rows by `used` vectors of a panel of rows.
  template <int Used = NR>
  static void tile_of_rows(int used, Index rows, const T* a, Index row_stride, Index k_stride,
                           const T* panel, Index k, C* tile, bool accumulate) {
    if (used == Used)
      with_rows<T, NR, Used>(rows, rows, a, row_stride, k_stride, panel, k, tile, accumulate,
                             lanes);
    else if constexpr (Used > 1)
      tile_of_rows<Used - 1>(used, rows, a, row_stride, k_stride, panel, k, tile, accumulate);
  }

  // The hidden states in both orders: lanes along rows, and along features.
  void pack_hidden(const Team& team, const Chunk& chunk) const {
    const Index K = s_.features, vectors = chunk.panels() * NR;
    if constexpr (rounds<T>) {
      copy(team, chunk.rows * K, tensor_row(s_.hidden, chunk.row0), rounded_hidden_);
      team.wait();
    }
    for (Index v = team.begin(vectors); v < team.end(vectors); ++v)
      pack_columns_transposed(hidden(chunk, v * w), K, chunk.rows - v * w, K,
                              hidden_lanes_ + v / NR * padded<T>(K) * lanes + v % NR * w * depth<T>,
                              lanes);
    if (s_.grad_hidden)
      pack_rows<T, NK>(
          team, K, chunk.rows, [&](Index row) { return hidden(chunk, row); }, hidden_panels_);
  }

  // exp(x - highest) of a block's logits x, with the sums over its classes.
  void exponentials(const Team& team, const Chunk& chunk, Index b) const {
    const Index K = s_.features, classes = block_classes(b);
    const Index slices = larger(1, ceil_div(K, sum_slice)), groups = ceil_div(K, depth<T>);
    for (Index panel = 0; panel < chunk.panels(); ++panel) {
      C* const x = logits(team, b, panel);
      for (Index c = 0; c < classes; c += R)
        for (Index i = 0; i < slices; ++i) {
          const Index k0 = groups * i / slices * depth<T>;
          const Index end = smaller(K, groups * (i + 1) / slices * depth<T>);
          tile_of_rows(chunk.used(panel), smaller(R, classes - c), weight(b * block + c) + k0, K,
                       depth<T>, hidden_lanes_ + (panel * padded<T>(K) + k0) * lanes, end - k0,
                       x + c * lanes, i > 0);
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
  void block_statistics(int used, Index b, C* x, Index place) const {
    if (used < Used) {
      if constexpr (Used > 1) block_statistics<Used - 1>(used, b, x, place);
      return;
    }
    const Index classes = block_classes(b);
    V high[Used], sum[Used], shifted[Used];
    for (int v = 0; v < Used; ++v)
      high[v] = V(-C(__builtin_inf())), sum[v] = V(C(0)), shifted[v] = V(C(0));
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
      const V none(-C(__builtin_inf()));
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
    const C scale = C(s_.scale), smoothing = C(s_.label_smoothing);
    V most(-C(__builtin_inf())), total(C(0)), shifted(C(0));
    for (Index b = 0; b < blocks_; ++b)
      most = Larger()(most, V::load(highest_ + b * stride_ + row));
    for (Index b = 0; b < blocks_; ++b) {
      const Index place = b * stride_ + row;
      const V down = V::load(highest_ + place) - most, sum = V::load(sums_ + place);
      total = total + sum * exp_negative(down);
      if (smoothing > 0)
        shifted = shifted + (V::load(shifts_ + place) + down * V(C(block_classes(b))));
    }
    alignas(64) C scales[w];
    for (Index r = 0; r < w; ++r) {
      scales[r] = C(0);
      if (row + r >= chunk.rows) continue;
      C& loss = static_cast<C*>(s_.losses)[chunk.row0 + row + r];
      loss = 0 * scale;  // NaN where no row counts, as a mean of none is in torch
      if (s_.target[chunk.row0 + row + r] == s_.ignore_index) continue;
      scales[r] = scale;
      const C sum = C(__builtin_log(double(total.v[r])));
      loss = scale * (sum - (1 - smoothing) * (target_logits_[row + r] - most.v[r]));
      // Not 0 * shifted: that may be infinite.
      if (smoothing > 0) loss -= scale * smoothing * (shifted.v[r] / C(s_.classes));
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
    const C smoothing = C(s_.label_smoothing);
    for (Index panel = 0; panel < chunk.panels(); ++panel)
      scale_panel(chunk.used(panel), logits(team, b, panel), classes, b * stride_ + panel * lanes,
                  panel * lanes, grad + panel * lanes);
    for (Index row = 0; row < chunk.rows; ++row) {
      const Index target = s_.target[chunk.row0 + row] - b * block;
      if (target < 0 || target >= classes) continue;
      C& here = logits(team, b, row / lanes)[target * lanes + row % lanes];
      here -= (1 - smoothing) * row_scales_[row];
      if constexpr (!rounds<T>) grad[target * stride_ + row] = here;
    }
    if constexpr (rounds<T>)
      for (Index panel = 0; panel < chunk.panels(); ++panel)
        round_panel(logits(team, b, panel), classes, grad + panel * lanes,
                    grad_groups_ + (panel * padded<T>(s_.classes) + b * block) * lanes);
    if (C* const bias = static_cast<C*>(s_.grad_bias))
      for (Index c = 0; c < classes; ++c) {
        V sum(C(0));
        for (Index v = 0; v < vectors; ++v) sum = sum + V::load(grad + c * stride_ + v * w);
        C& into = bias[b * block + c];
        into = (accumulate ? into : C(0)) + across(sum, Add());
      }
    for (Index c = 0; c < classes; c += tile_rows<NK>)
      for (Index panel = 0; panel < ceil_div(K, NK * w); ++panel)
        weight_tile(grad + c * stride_, smaller(tile_rows<NK>, classes - c), chunk.rows, panel,
                    static_cast<C*>(s_.grad_weight) + (b * block + c) * K, accumulate);
  }

  // A panel's gradients x [classes][lanes] rounded into `grad`, as they are, and into `groups`,
  // where the gradients of a group of classes are together.
  void round_panel(const C* x, Index classes, T* grad, T* groups) const {
    for (Index c = 0; c < classes; c += depth<T>)
      for (Index v = 0; v < lanes; v += w) {
        for (Index i = 0; i < smaller(depth<T>, classes - c); ++i)
          V::load(x + (c + i) * lanes + v).store(grad + (c + i) * stride_ + v);
        const auto at = [&](Index i) { return grad + (c + i) * stride_ + v; };
        const auto columns = zip_rows<T>(at, classes - c, w);
        __builtin_memcpy(groups + c * lanes + v * depth<T>, &columns.v, sizeof columns.v);
      }
  }

  template <int Used = NR>
  void scale_panel(int used, C* x, Index classes, Index place, Index row, T* grad) const {
    if (used < Used) {
      if constexpr (Used > 1) scale_panel<Used - 1>(used, x, classes, place, row, grad);
      return;
    }
    V factor[Used], scale[Used], flat[Used];
    for (int v = 0; v < Used; ++v) {
      factor[v] = V::load(sums_ + place + v * w);
      scale[v] = V::load(row_scales_ + row + v * w);
      flat[v] = scale[v] * V(C(s_.label_smoothing) / C(s_.classes));
    }
    for (Index c = 0; c < classes; ++c)
#pragma GCC unroll 4
      for (int v = 0; v < Used; ++v) {
        const V y = where_positive(scale[v], V::load(x + c * lanes + v * w) * factor[v]) - flat[v];
        y.store(x + c * lanes + v * w);
        if constexpr (!rounds<T>) y.store(grad + c * stride_ + v * w);
      }
  }

  // out [count, K], from its column `panel` on, = or += grad [count, rows] hidden [rows, K].
  void weight_tile(const T* grad, Index count, Index rows, Index panel, C* out,
                   bool accumulate) const {
    const Index K = s_.features, column = panel * NK * w, left = K - column;
    const T* const packed = hidden_panels_ + column * padded<T>(rows);
    for (Index r = 0; r < count; ++r) {
      __builtin_prefetch(out + r * K + column, 1, 3);
      __builtin_prefetch(out + r * K + column + w, 1, 3);
    }
    if (left >= NK * w)
      return tile_product<T, NK>(NK, count, grad, stride_, depth<T>, packed, rows, out + column,
                                 accumulate, K);
    alignas(64) C tile[tile_rows<NK> * NK * w];
    tile_product<T, NK>(vectors_used<NK>(ceil_div(left, w)), count, grad, stride_, depth<T>, packed,
                        rows, tile, false);
    for (Index r = 0; r < count; ++r)
      for (Index v = 0; v * w < left; ++v) {
        C* const here = out + r * K + column + v * w;
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
        const T* const next = weight_group(c + slice);
        const Index ahead = larger(0, smaller(slice, last - c - slice)) * group_stride();
        for (Index i = 0; i < count; ++i) {
          const Index tile = begin + i, k = tile / panels * R, panel = tile % panels;
          fetch(next + ahead * i / count, ahead / count);
          tile_of_rows(chunk.used(panel), smaller(R, K - k), weight_group(c) + k * depth<T>,
                       depth<T>, group_stride() * depth<T>, gradients(team, c, panel),
                       smaller(slice, last - c), grad_tile(part * tiles + tile), c > first);
        }
      }
    }
  }

  C* grad_tile(Index i) const { return grad_tiles_ + i * R * lanes; }

  void grad_hidden(const Team& team, const Chunk& chunk) const {
    const Index K = s_.features, panels = chunk.panels(), tiles = ceil_div(K, R) * panels;
    for (Index tile = team.begin(tiles); tile < team.end(tiles); ++tile) {
      const Index k = tile / panels * R, row0 = tile % panels * lanes;
      C* const out = static_cast<C*>(s_.grad_hidden) + (chunk.row0 + row0) * K + k;
      for (Index r = 0; r < smaller(lanes, chunk.rows - row0); ++r)
        for (Index i = 0; i < smaller(R, K - k); ++i) {
          C sum = 0;
          for (Index part = 0; part < parts; ++part)
            sum += grad_tile(part * tiles + tile)[i * lanes + r];
          out[r * K + i] = sum;
        }
    }
  }

  // A panel's gradients from the group of classes c on, as a product reads them.
  const T* gradients(const Team& team, Index c, Index panel) const {
    if constexpr (rounds<T>)
      return grad_groups_ + (panel * padded<T>(s_.classes) + c) * lanes;
    else
      return logits(team, 0, panel) + c * lanes;
  }

  const CrossEntropy& s_;
  Arena arena_;
  const Index blocks_;
  Index chunk_, panels_, stride_;  // rows of a chunk, their panels, and with the last one full
  C *logits_, *highest_, *sums_, *shifts_, *target_logits_;
  C *row_scales_ = nullptr, *grad_tiles_ = nullptr;
  T *hidden_lanes_, *hidden_panels_ = nullptr, *grad_block_ = nullptr;
  T *rounded_hidden_ = nullptr, *rounded_weight_ = nullptr;  // of the tensors
  T *weight_groups_ = nullptr, *grad_groups_ = nullptr;
};

template <class T>
constexpr Kernel<CrossEntropy> cross_entropy_kernel = kernel<CrossEntropyLoop<T>, CrossEntropy>;

const Kernel<CrossEntropy>* cross_entropy(int dtype_bytes) {
  if (dtype_bytes == 2) return &cross_entropy_kernel<Bf16>;
  return dtype_bytes == 4 ? &cross_entropy_kernel<float> : &cross_entropy_kernel<double>;
}

}  // namespace fastrnn::FASTRNN_ISA
