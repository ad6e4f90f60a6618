// Linear layer, softmax and cross entropy in one pass over chunks of rows, so that the logits
// [M, V] are never whole in memory; with gradients, the chunk's softmax is turned into them at
// once. Built once per instruction set (FASTRNN_ISA).
#include "gemm_cpu.h"
#include "kernels_cpu.h"
#include "workspace.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
FASTRNN_INLINE T horizontal(Vec<T> x, T (*combine)(T, T)) {
  T result = x.v[0];
  for (int lane = 1; lane < Vec<T>::width; ++lane) result = combine(result, x.v[lane]);
  return result;
}

template <class T>
class CrossEntropyLoop {
  using V = Vec<T>;
  static constexpr Index w = V::width;
  static constexpr int wide = 4, NV = 2;                 // vectors of a panel: logits, gradients
  static constexpr Index chunk_bytes = Index(12) << 20;  // of logits: within the last-level cache

 public:
  CrossEntropyLoop(const CrossEntropy& args, char* workspace, int threads)
      : s_(args), arena_(workspace) {
    const Index M = s_.rows, K = s_.features, C = s_.classes;
    const Index fits = chunk_bytes / (C * Index(sizeof(T)));
    const Index chunk = smaller(M, fits < tile_rows<NV> ? tile_rows<NV> : fits);
    chunks_ = ceil_div(M, chunk), chunk_ = ceil_div(M, chunks_);
    logits_ = arena_.template take<T>(chunk_ * C);
    highest_ = arena_.template take<T>(threads * chunk_ * w);
    packed_ = arena_.template take<T>(ceil_div(C, wide * w) * wide * w * K);
    if (!s_.grad_hidden) return;
    factors_ = arena_.template take<T>(chunk_);
    packed_rows_ = arena_.template take<T>(ceil_div(K, NV * w) * NV * w * C);
    packed_hidden_ = arena_.template take<T>(ceil_div(K, NV * w) * NV * w * chunk_);
    scratch_ = arena_.template take<T>(transposed_scratch<T, NV> * threads);
  }

  Index bytes() const { return arena_.bytes(); }

  void run(const Team& team) const {
    const Index M = s_.rows, K = s_.features, C = s_.classes;
    pack_transposed<T, wide>(team, weight(0), C, K, packed_);
    if (s_.grad_hidden)
      pack_rows<T, NV>(team, K, C, [this](Index row) { return weight(row); }, packed_rows_);
    for (Index chunk = 0; chunk < chunks_; ++chunk) {
      const Index row0 = M * chunk / chunks_, rows = M * (chunk + 1) / chunks_ - row0;
      team.wait();
      logits(team, row0, rows);
      team.wait();
      for (Index row = team.begin(rows); row < team.end(rows); ++row) {
        row_loss(team, row0, row);
        if (s_.grad_hidden) pack_hidden(row0, row, rows);
      }
      if (!s_.grad_hidden) continue;
      team.wait();
      gradients(team, row0, rows, chunk > 0);
    }
  }

 private:
  const T* hidden(Index row) const { return static_cast<const T*>(s_.hidden) + row * s_.features; }
  const T* weight(Index row) const { return static_cast<const T*>(s_.weight) + row * s_.features; }

  // Also the highest logit that this thread saw of each row, lane by lane.
  void logits(const Team& team, Index row0, Index rows) const {
    const Index K = s_.features, C = s_.classes;
    const T* bias = static_cast<const T*>(s_.bias);
    T* const highest = highest_ + team.rank * chunk_ * w;
    const V lowest(-T(__builtin_inf()));
    for (Index r = 0; r < rows; ++r) lowest.store(highest + r * w);
    product<T, wide>(team, rows, ceil_div(C, w), K, hidden(row0), K, packed_,
                     [&](const T* tile, Index first, Index count, Index panel) {
                       for (Index v = 0; v < wide; ++v) {
                         const Index column = (panel * wide + v) * w, lanes = C - column;
                         if (lanes <= 0) break;
                         const V shift = V::load(bias + column, bias ? lanes : 0);
                         for (Index r = 0; r < count; ++r) {
                           V x = V::load(tile + (r * wide + v) * w) + shift;
                           x.store(logits_ + (first + r) * C + column, lanes);
                           T* const here = highest + (first + r) * w;
                           const V high = V::load(here);
                           x.v = x.v > high.v ? x.v : high.v;
                           x.store(here, lanes);
                         }
                       }
                     });
  }

  // The loss of one row of logits x, which become, up to factors_[row], the gradient of it:
  // scale (softmax - (1 - smoothing) onehot - smoothing / V).
  void row_loss(const Team& team, Index row0, Index row) const {
    const Index C = s_.classes, target = s_.target[row0 + row];
    T* const x = logits_ + row * C;
    T& loss = static_cast<T*>(s_.losses)[row0 + row];
    if (target == s_.ignore_index) {
      loss = 0 * T(s_.scale);  // NaN where no row counts, as a mean of none is in torch
      for (Index i = 0; i < C; i += w) V(T(0)).store(x + i, C - i);
      if (s_.grad_hidden) factors_[row] = T(0);
      return;
    }
    const T smoothing = T(s_.label_smoothing), scale = T(s_.scale);
    V high = V::load(highest_ + row * w);
    for (int rank = 1; rank < team.size; ++rank) {
      const V other = V::load(highest_ + (rank * chunk_ + row) * w);
      high.v = other.v > high.v ? other.v : high.v;
    }
    const T most = horizontal<T>(high, [](T a, T b) { return b > a ? b : a; });
    const T target_logit = x[target] - most;

    // sum of exp(x - most), and of x - most for smoothing; lanes beyond the row add nothing.
    V exps(T(0)), shifted(T(0));
    for (Index i = 0; i < C; i += w) {
      const Index lanes = C - i;
      const V d = V::load(x + i, lanes) - V(most);
      V e = exp_negative(d);
      if (s_.grad_hidden) e.store(x + i, lanes);
      if (smoothing > 0) shifted = shifted + first_lanes(d, lanes);
      exps = exps + first_lanes(e, lanes);
    }
    const auto add = [](T a, T b) { return a + b; };
    const T total = horizontal<T>(exps, add);
    loss = scale * (T(__builtin_log(double(total))) - (1 - smoothing) * target_logit);
    // Not 0 * sum: the sum may be infinite.
    if (smoothing > 0) loss -= scale * smoothing * (horizontal<T>(shifted, add) / T(C));
    if (!s_.grad_hidden) return;
    factors_[row] = scale / total;
    if (smoothing > 0) {
      const V flat(smoothing / T(C) * total);
      for (Index i = 0; i < C; i += w) (V::load(x + i, C - i) - flat).store(x + i, C - i);
    }
    x[target] -= (1 - smoothing) * total;
  }

  static FASTRNN_INLINE V first_lanes(V x, Index lanes) {
    if (lanes >= w) return x;
    alignas(64) T values[w];
    x.store(values);
    return V::load(values, lanes);
  }

  // A row of the hidden states, times its factor: the other side of the weight's gradient.
  void pack_hidden(Index row0, Index row, Index rows) const {
    const Index K = s_.features;
    const V factor(factors_[row]);
    for (Index v = 0; v < ceil_div(K, NV * w) * NV; ++v)
      (V::load(hidden(row0 + row) + v * w, K - v * w) * factor)
          .store(packed_hidden_ + (v / NV * rows + row) * NV * w + v % NV * w);
  }

  void gradients(const Team& team, Index row0, Index rows, bool accumulate) const {
    const Index K = s_.features, C = s_.classes;
    T* const out = static_cast<T*>(s_.grad_hidden) + row0 * K;
    product<T, NV>(team, rows, ceil_div(K, w), C, logits_, C, packed_rows_,
                   [&](const T* tile, Index first, Index count, Index panel) {
                     for (Index r = 0; r < count; ++r)
                       for (Index v = 0; v < NV; ++v) {
                         const Index k = (panel * NV + v) * w;
                         if (k < K)
                           (V::load(tile + (r * NV + v) * w) * V(factors_[first + r]))
                               .store(out + (first + r) * K + k, K - k);
                       }
                   });
    const Target<T> weight{packed_hidden_, K, static_cast<T*>(s_.grad_weight)};
    transposed_product<T, NV>(team, logits_, C, C, rows, &weight, 1,
                              scratch_ + team.rank * transposed_scratch<T, NV>, accumulate,
                              static_cast<T*>(s_.grad_bias), factors_);
  }

  const CrossEntropy& s_;
  Arena arena_;
  Index chunk_, chunks_;
  T *logits_, *highest_, *packed_;
  T *factors_ = nullptr, *packed_rows_ = nullptr, *packed_hidden_ = nullptr, *scratch_ = nullptr;
};

template <class T>
constexpr Kernel<CrossEntropy> cross_entropy_kernel = kernel<CrossEntropyLoop<T>, CrossEntropy>;

const Kernel<CrossEntropy>* cross_entropy(int dtype_bytes) {
  return dtype_bytes == 4 ? &cross_entropy_kernel<float> : &cross_entropy_kernel<double>;
}

}  // namespace fastrnn::FASTRNN_ISA
