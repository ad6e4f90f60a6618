// The cluster-persistent schedule (sm_90 and later): its layouts and launches.
#include <cstring>

#include "cluster_backward.h"
#include "cluster_forward.h"

namespace fastrnn::cuda {
namespace {

// Exact: float32 not by tensor cores. Stack: the ways are layers.
template <class T, class Cell, bool exact, bool stack>
struct Launches {
  static ClusterShape shape(bool backward, Index hidden_size) {
    ClusterShape shape = cell_shape<T, Cell>(backward, exact, hidden_size);
    shape.stack = stack;
    return shape;
  }

  // Sequences are dealt to as many clusters as run at once, up to 8 each; more clusters queue.
  static bool layout(bool backward, Index batch, Index hidden_size, int cluster, int share,
                     int processors, Index shared_limit, Layout* layout) {
    if (batch < 1 || share != 1 || cluster < 2 || cluster > most_peers || processors < cluster)
      return false;
    if (batch > INT32_MAX || hidden_size > INT32_MAX / octet) return false;
    const Index at_once = processors / cluster, dealt = (batch + at_once - 1) / at_once;
    const int tile = int(dealt < columns ? dealt : columns);
    const ClusterPlan p = cluster_plan(shape(backward, hidden_size), cluster, tile, shared_limit);
    if (p.jobs == 0) return false;
    const int clusters = int((batch + tile - 1) / tile);
    if (stack && clusters > at_once) return false;
    const Index bytes = stack ? p.count_bytes(clusters) : 0;
    *layout = {cluster, clusters, 1, tile, p.threads(), p.shared, bytes};
    return true;
  }

  // The same choice again: what costs least within the limit is no larger than itself.
  template <class Kernels, class Pass>
  static int launch_with(const Kernels& kernels, bool backward, const Way<Pass>* ways, int count,
                         const Layout& layout, void* counts, void* stream) {
    const ClusterPlan p = cluster_plan(shape(backward, ways->pass.hidden_size), layout.cluster,
                                       layout.tile, layout.shared);
    const Grid grid{unsigned(layout.cluster) * unsigned(layout.clusters),
                    unsigned(count),
                    p.threads(),
                    p.shared,
                    layout.cluster,
                    stack};  // layers wait for each other
    return launch(kernels(p), grid, stream, Ways<T, Pass>(ways, count), p,
                  static_cast<unsigned*>(counts));
  }

  static int forward(const Way<Forward>* ways, int count, const Layout& layout, void* counts,
                     void* stream) {
    const auto kernels = [](const ClusterPlan& p) {
      if constexpr (exact)
        return cluster_forward<T, Cell, Held::none, stack>;
      else
        return p.held == Held::most ? cluster_forward<T, Cell, Held::most, stack>
                                    : cluster_forward<T, Cell, Held::some, stack>;
    };
    return launch_with(kernels, false, ways, count, layout, counts, stream);
  }

  static int backward(const Way<Backward>* ways, int count, const Layout& layout, void* counts,
                      void* stream) {
    const auto kernels = [](const ClusterPlan& p) {
      if constexpr (exact)
        return cluster_backward<T, Cell, Held::none, stack>;
      else
        return p.held == Held::most ? cluster_backward<T, Cell, Held::most, stack>
                                    : cluster_backward<T, Cell, Held::some, stack>;
    };
    return launch_with(kernels, true, ways, count, layout, counts, stream);
  }
};

template <class T, class Cell, bool exact = false, bool stack = false>
constexpr PersistentKernels kernels = {Launches<T, Cell, exact, stack>::layout,
                                       Launches<T, Cell, exact, stack>::forward,
                                       Launches<T, Cell, exact, stack>::backward};

template <class Cell>
const PersistentKernels* stack_of_dtype(Dtype dtype) {
  if (dtype == Dtype::float16) return &kernels<Half, Cell, false, true>;
  if (dtype == Dtype::bfloat16) return &kernels<BFloat16, Cell, false, true>;
  return nullptr;
}

template <class Cell>
const PersistentKernels* of_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::float32:
      return &kernels<float, Cell, true>;
    case Dtype::tf32:
      return &kernels<float, Cell>;
    case Dtype::float16:
      return &kernels<Half, Cell>;
    case Dtype::bfloat16:
      return &kernels<BFloat16, Cell>;
    case Dtype::float64:
      break;
  }
  return nullptr;
}

}  // namespace

const PersistentKernels* cluster_kernels(const char* cell, Dtype dtype) {
  const auto is = [cell](const char* name) { return std::strcmp(cell, name) == 0; };
  if (is("lstm")) return of_dtype<device::Lstm>(dtype);
  if (is("gru")) return of_dtype<device::Gru>(dtype);
  if (is("gru_reset_before")) return of_dtype<device::GruResetBefore>(dtype);
  if (is("rnn_tanh")) return of_dtype<device::RnnTanh>(dtype);
  if (is("rnn_relu")) return of_dtype<device::RnnRelu>(dtype);
  return nullptr;
}

const PersistentKernels* stack_kernels(const char* cell, Dtype dtype) {
  const auto is = [cell](const char* name) { return std::strcmp(cell, name) == 0; };
  // Those whose exchanged gradients are the input's, too.
  if (is("lstm")) return stack_of_dtype<device::Lstm>(dtype);
  if (is("rnn_tanh")) return stack_of_dtype<device::RnnTanh>(dtype);
  if (is("rnn_relu")) return stack_of_dtype<device::RnnRelu>(dtype);
  return nullptr;
}

}  // namespace fastrnn::cuda
