// Linear layer, softmax and cross entropy in one pass over chunks of rows, so that the logits
// [M, V] are never whole in memory; with gradients, a chunk's softmax is turned into them at once.
// Logits are held transposed, classes by rows: lanes are rows, so that a row's statistics are sums
// lane by lane, and the weight is read as it lies, one value for all lanes. Built once per
// instruction set (FASTRNN_ISA).
//
// Operands of the products are rounded to T: Bf16 from tensors of float, and sums into such.
#include "cross_entropy_softmax_cpu.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
class CrossEntropyLoop {
  using C = Value<T>;
  using O = Operand<T>;
  using V = Vec<C>;
  static constexpr Index w = V::width, lanes = Chunk<T>::lanes;
  static constexpr int NR = Chunk<T>::NR, NK = CrossEntropyOperands<T>::NK;
  static constexpr bool grouped = CrossEntropyOperands<T>::grouped;
  static constexpr Index R = tile_rows<NR>;
  static constexpr Index slice = 2 * Cut<T>::most_block, parts = 2;  // of a sum over classes

 public:
  CrossEntropyLoop(const CrossEntropy& args, char* workspace, int threads)
      : s_(args),
        cut_(args),
        arena_(workspace),
        operands_(args, cut_, arena_),
        softmax_(args, cut_, arena_) {
    const Index classes = s_.classes, stride = cut_.stride;
    const bool gradients = s_.grad_hidden != nullptr;
    logits_ = arena_.template take<C>((gradients ? classes : cut_.block * threads) * stride);
    if (!gradients) return;
    grad_block_ = arena_.template take<O>(cut_.block * stride * threads);
    grad_tiles_ = arena_.template take<C>(parts * ceil_div(s_.features, R) * R * stride);
    if constexpr (grouped) grad_groups_ = arena_.template take<O>(padded<T>(classes) * stride);
  }

  Index bytes() const { return arena_.bytes(); }

  void run(const Team& team) const {
    const Index blocks = cut_.blocks;
    if constexpr (rounds<T>) operands_.round_weight(team);
    for (Index row0 = 0; row0 < s_.rows; row0 += cut_.rows) {
      const Chunk<T> chunk = cut_.chunk(row0);
      operands_.pack_hidden(team, chunk);
      team.wait();
      for (Index b = team.begin(blocks); b < team.end(blocks); ++b) exponentials(team, chunk, b);
      team.wait();
      const Index vectors = chunk.vectors();
      for (Index v = team.begin(vectors); v < team.end(vectors); ++v) softmax_.losses(chunk, v * w);
      if (!s_.grad_hidden) continue;
      team.wait();
      for (Index b = team.begin(blocks); b < team.end(blocks); ++b) grad_weight(team, chunk, b);
      team.wait();
      sum_over_classes(team, chunk);
      team.wait();
      grad_hidden(team, chunk);
    }
  }

 private:
  // A block's logits of a panel of rows, [classes][lanes]; without gradients they are not kept.
  C* logits(const Team& team, Index b, Index panel) const {
    if (s_.grad_hidden) return logits_ + (panel * s_.classes + b * cut_.block) * lanes;
    return logits_ + (team.rank * cut_.panels + panel) * cut_.block * lanes;
  }

  // Has the processor read `count` values that are needed soon.
  static void fetch(const O* p, Index count) {
    for (Index i = 0; i < count; i += 64 / Index(sizeof *p)) __builtin_prefetch(p + i, 0, 2);
  }

  // A tile of up to R rows by `used` vectors of a panel of rows.
  template <int Used = NR>
  static void tile_of_rows(int used, Index rows, const O* a, Index row_stride, Index k_stride,
                           const O* panel, Index k, C* tile, bool accumulate) {
    if (used == Used)
      with_rows<O, NR, Used>(rows, rows, a, row_stride, k_stride, panel, k, tile, accumulate,
                             lanes);
    else if constexpr (Used > 1)
      tile_of_rows<Used - 1>(used, rows, a, row_stride, k_stride, panel, k, tile, accumulate);
  }

  // exp(x - highest) of a block's logits x, with what the softmax needs of it.
  void exponentials(const Team& team, const Chunk<T>& chunk, Index b) const {
    const Index K = s_.features, classes = cut_.block_classes(b);
    const Slices<T> slices(K);
    for (Index panel = 0; panel < chunk.panels(); ++panel) {
      C* const x = logits(team, b, panel);
      const bool last = panel + 1 == chunk.panels();
      for (bool level : {s_.classes > 1, false}) {  // of one class the softmax is 1 to the bit
        for (Index c = 0; c < classes; c += R) {
          if (last) fetch(operands_.weight(b * cut_.block + classes + c), R * K);
          for (Index i = 0; i < slices.count; ++i) {
            const Index k0 = slices.begin(i), end = slices.begin(i + 1);
            tile_of_rows(chunk.used(panel), smaller(R, classes - c),
                         operands_.weight(b * cut_.block + c) + k0, K, depth<T>,
                         operands_.hidden_rows(panel, k0), end - k0, x + c * lanes, i > 0);
          }
        }
        if (softmax_.block(chunk, panel, b, level, x)) break;
      }
    }
  }

  // The gradient of a block's logits, and its product with the hidden states: that of the weight.
  void grad_weight(const Team& team, const Chunk<T>& chunk, Index b) const {
    const Index K = s_.features, classes = cut_.block_classes(b);
    const bool accumulate = chunk.row0 > 0;
    O* const grad = grad_block_ + team.rank * cut_.block * cut_.stride;
    for (Index panel = 0; panel < chunk.panels(); ++panel) {
      C* const x = logits(team, b, panel);
      softmax_.gradient(chunk, panel, b, x, grad + panel * lanes);
      if constexpr (rounds<T>)
        round_panel(x, classes, grad + panel * lanes, gradients(team, b * cut_.block, panel));
    }
    if (C* const bias = static_cast<C*>(s_.grad_bias))
      for (Index c = 0; c < classes; ++c) {
        V sum(C(0));
        for (Index v = 0; v < chunk.vectors();) {
          V part(C(0));  // of a few: a long sum rounds every small term
          for (const Index end = smaller(v + 16, chunk.vectors()); v < end; ++v)
            part = part + V::load(grad + c * cut_.stride + v * w);
          sum = sum + part;
        }
        C& into = bias[b * cut_.block + c];
        into = (accumulate ? into : C(0)) + across(sum, Add());
      }
    for (Index c = 0; c < classes; c += tile_rows<NK>)
      for (Index panel = 0; panel < ceil_div(K, NK * w); ++panel)
        weight_tile(grad + c * cut_.stride, smaller(tile_rows<NK>, classes - c), chunk.rows, panel,
                    static_cast<C*>(s_.grad_weight) + (b * cut_.block + c) * K, accumulate);
  }

  // A panel's gradients x [classes][lanes] rounded into `grad`, as they are, and into `groups`,
  // where the gradients of a group of classes are together; without groups that may be x.
  void round_panel(const C* x, Index classes, O* grad, O* groups) const {
    for (Index c = 0; c < classes; c += depth<T>)
      for (Index v = 0; v < lanes; v += w) {
        for (Index i = 0; i < smaller(depth<T>, classes - c); ++i)
          store_operand<T>(V::load(x + (c + i) * lanes + v), grad + (c + i) * cut_.stride + v, w);
        const auto at = [&](Index i) { return grad + (c + i) * cut_.stride + v; };
        const auto columns = zip_rows<T>(at, classes - c, w);
        __builtin_memcpy(groups + c * lanes + v * depth<T>, &columns.v, sizeof columns.v);
      }
  }

  // out [count, K], from its column `panel` on, = or += grad [count, rows] hidden [rows, K].
  void weight_tile(const O* grad, Index count, Index rows, Index panel, C* out,
                   bool accumulate) const {
    const Index K = s_.features, column = panel * NK * w, left = K - column;
    const O* const packed = operands_.hidden_features(panel, rows);
    for (Index r = 0; r < count; ++r) {
      __builtin_prefetch(out + r * K + column, 1, 3);
      __builtin_prefetch(out + r * K + column + w, 1, 3);
    }
    alignas(64) C tile[tile_rows<NK> * NK * w];
    const bool whole = left >= NK * w;
    const int used = whole ? NK : vectors_used<NK>(ceil_div(left, w));
    for (Index i = 0; i < rows; i += gradient_slice)
      tile_product<O, NK>(used, count, grad + i, cut_.stride, depth<T>, packed + i * NK * w,
                          smaller(gradient_slice, rows - i), whole ? out + column : tile,
                          i > 0 || (whole && accumulate), whole ? K : NK * w);
    if (!whole) store_tile<C, NK>(tile, count, panel, out, K, K, accumulate);
  }

  // Sums over a part of the classes, tile by tile of features by rows; with two threads each has
  // the part whose logits it made. A slice's rows of the weight serve all tiles from the cache.
  void sum_over_classes(const Team& team, const Chunk<T>& chunk) const {
    const Index K = s_.features, panels = chunk.panels(), tiles = ceil_div(K, R) * panels;
    for (Index part = 0; part < parts; ++part) {
      const Index begin = larger(team.begin(parts * tiles) - part * tiles, 0),
                  count = smaller(team.end(parts * tiles) - part * tiles, tiles) - begin;
      const Index first = cut_.blocks * part / parts * cut_.block,
                  last = smaller(s_.classes, cut_.blocks * (part + 1) / parts * cut_.block);
      // A part without classes, of few, still gets its zeros.
      for (Index c = first; count > 0 && (c == first || c < last); c += slice) {
        const O* const next = operands_.weight_group(c + slice);
        const Index ahead = larger(0, smaller(slice, last - c - slice)) * operands_.group_stride();
        for (Index i = 0; i < count; ++i) {
          const Index tile = begin + i, k = tile / panels * R, panel = tile % panels;
          fetch(next + ahead * i / count, ahead / count);
          tile_of_rows(chunk.used(panel), smaller(R, K - k),
                       operands_.weight_group(c) + k * depth<T>, depth<T>,
                       operands_.group_stride() * depth<T>, gradients(team, c, panel),
                       smaller(slice, last - c), grad_tile(part * tiles + tile), c > first);
        }
      }
    }
  }

  C* grad_tile(Index i) const { return grad_tiles_ + i * R * lanes; }

  void grad_hidden(const Team& team, const Chunk<T>& chunk) const {
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
  O* gradients(const Team& team, Index c, Index panel) const {
    if constexpr (grouped)
      return grad_groups_ + (panel * padded<T>(s_.classes) + c) * lanes;
    else
      return logits(team, 0, panel) + c * lanes;
  }

  const CrossEntropy& s_;
  const Cut<T> cut_;
  Arena arena_;
  const CrossEntropyOperands<T> operands_;
  const Softmax<T> softmax_;
  C *logits_, *grad_tiles_ = nullptr;
  O *grad_block_ = nullptr, *grad_groups_ = nullptr;
};

template <class T>
constexpr Kernel<CrossEntropy> cross_entropy_kernel = kernel<CrossEntropyLoop<T>, CrossEntropy>;

const Kernel<CrossEntropy>* cross_entropy(int dtype_bytes) {
  if (dtype_bytes == 2) return &cross_entropy_kernel<Bf16>;
  return dtype_bytes == 4 ? &cross_entropy_kernel<float> : &cross_entropy_kernel<double>;
}

}  // namespace fastrnn::FASTRNN_ISA
