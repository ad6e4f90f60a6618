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
    chunk_ = smaller(M, fits < tile_rows<NV> ? tile_rows<NV> : fits);
    chunks_ = ceil_div(M, chunk_);
    logits_ = arena_.template take<T>(ceil_div(M, chunks_) * C);
    packed_ = arena_.template take<T>(ceil_div(C, wide * w) * wide * w * K);
    if (!s_.grad_hidden) return;
    packed_rows_ = arena_.template take<T>(ceil_div(K, NV * w) * NV * w * C);
    packed_hidden_ = arena_.template take<T>(ceil_div(K, NV * w) * NV * w * ceil_div(M, chunks_));
    scratch_ = arena_.template take<T>(transposed_scratch<T, NV> * threads);
  }

  Index bytes() const { return arena_.bytes(); }

  void run(const Team& team) const {
    const Index M = s_.rows, K = s_.features, C = s_.classes;
    const T* weight = static_cast<const T*>(s_.weight);
    pack_transposed<T, wide>(team, weight, C, K, packed_);
    if (s_.grad_hidden)
      pack_rows<T, NV>(team, K, C, [=](Index row) { return weight + row * K; }, packed_rows_);
    for (Index chunk = 0; chunk < chunks_; ++chunk) {
      const Index row0 = M * chunk / chunks_, rows = M * (chunk + 1) / chunks_ - row0;
      team.wait();
      logits(team, row0, rows);
      if (s_.grad_hidden)
        pack_rows<T, NV>(
            team, K, rows, [=, this](Index row) { return hidden(row0 + row); }, packed_hidden_);
      team.wait();
      for (Index row = team.begin(rows); row < team.end(rows); ++row) row_loss(row0, row);
      if (!s_.grad_hidden) continue;
      team.wait();
      gradients(team, row0, rows, chunk > 0);
    }
  }

 private:
  const T* hidden(Index row) const { return static_cast<const T*>(s_.hidden) + row * s_.features; }

  void logits(const Team& team, Index row0, Index rows) const {
    const Index K = s_.features, C = s_.classes;
    const T* bias = static_cast<const T*>(s_.bias);
    product<T, wide>(team, rows, ceil_div(C, w), K, hidden(row0), K, packed_,
                     [&](const T* tile, Index first, Index count, Index panel) {
                       for (Index v = 0; v < wide; ++v) {
                         const Index column = (panel * wide + v) * w, lanes = C - column;
                         if (lanes <= 0) break;
                         const V shift = V::load(bias + column, bias ? lanes : 0);
                         for (Index r = 0; r < count; ++r)
                           (V::load(tile + (r * wide + v) * w) + shift)
                               .store(logits_ + (first + r) * C + column, lanes);
                       }
                     });
  }

  // The loss of one row of logits, which become the gradient of it:
  // scale (softmax - (1 - smoothing) onehot - smoothing / V).
  void row_loss(Index row0, Index row) const {
    const Index C = s_.classes, target = s_.target[row0 + row];
    T* const x = logits_ + row * C;
    T& loss = static_cast<T*>(s_.losses)[row0 + row];
    if (target == s_.ignore_index) {
      loss = 0 * T(s_.scale);  // NaN where no row counts, as a mean of none is in torch
      for (Index i = 0; i < C; i += w) V(T(0)).store(x + i, C - i);
      return;
    }
    const T smoothing = T(s_.label_smoothing), scale = T(s_.scale);
    const Index whole = C / w * w;
    T most = x[0];
    V high(x[0]);
    for (Index i = 0; i < whole; i += w) {
      const V here = V::load(x + i);
      high.v = here.v > high.v ? here.v : high.v;
    }
    most = horizontal<T>(high, [](T a, T b) { return b > a ? b : a; });
    for (Index i = whole; i < C; ++i) most = x[i] > most ? x[i] : most;

    // sum of exp(x - most), and of x - most for smoothing; lanes beyond the row add nothing.
    V exps(T(0)), shifted(T(0));
    for (Index i = 0; i < C; i += w) {
      const V d = V::load(x + i, C - i) - V(most);
      V e = exp_negative(d);
      if (i == whole) {
        T last[w];
        e.store(last);
        e = V::load(last, C - i);
        d.store(last);
        shifted = shifted + V::load(last, C - i);
      } else {
        shifted = shifted + d;
      }
      exps = exps + e;
      // The target's logit is read below, before it is overwritten.
      if (s_.grad_hidden && !(target >= i && target < i + w)) e.store(x + i, C - i);
    }
    const auto add = [](T a, T b) { return a + b; };
    const T total = horizontal<T>(exps, add), at_target = x[target] - most;
    const T log_total = T(__builtin_log(double(total)));
    loss = scale * (log_total - (1 - smoothing) * at_target);
    // Not 0 * sum: the sum may be infinite.
    if (smoothing > 0) loss -= scale * smoothing * (horizontal<T>(shifted, add) / T(C));
    if (!s_.grad_hidden) return;
    const Index block = target / w * w;
    const V e = exp_negative(V::load(x + block, C - block) - V(most));
    e.store(x + block, C - block);
    const V share(scale / total), flat(scale * smoothing / T(C));
    for (Index i = 0; i < C; i += w) (V::load(x + i, C - i) * share - flat).store(x + i, C - i);
    x[target] -= scale * (1 - smoothing);
  }

  void gradients(const Team& team, Index row0, Index rows, bool accumulate) const {
    const Index K = s_.features, C = s_.classes;
    T* const out = static_cast<T*>(s_.grad_hidden) + row0 * K;
    product<T, NV>(team, rows, ceil_div(K, w), C, logits_, C, packed_rows_,
                   [&](const T* tile, Index first, Index count, Index panel) {
                     store_tile<T, NV>(tile, count, panel, out + first * K, K, K);
                   });
    const Target<T> weight{packed_hidden_, K, static_cast<T*>(s_.grad_weight)};
    transposed_product<T, NV>(team, logits_, C, C, rows, &weight, 1,
                              scratch_ + team.rank * transposed_scratch<T, NV>, accumulate);
    if (s_.grad_bias)
      column_sums(team, logits_, rows, C, static_cast<T*>(s_.grad_bias), accumulate);
  }

  const CrossEntropy& s_;
  Arena arena_;
  Index chunk_, chunks_;
  T *logits_, *packed_, *packed_rows_ = nullptr, *packed_hidden_ = nullptr, *scratch_ = nullptr;
};

template <class T>
constexpr Kernel<CrossEntropy> cross_entropy_kernel = kernel<CrossEntropyLoop<T>, CrossEntropy>;

const Kernel<CrossEntropy>* cross_entropy(int dtype_bytes) {
  return dtype_bytes == 4 ? &cross_entropy_kernel<float> : &cross_entropy_kernel<double>;
}

}  // namespace fastrnn::FASTRNN_ISA
