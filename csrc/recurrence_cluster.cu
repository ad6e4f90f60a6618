// The cluster-persistent schedule (sm_90 and later): its layouts and launches.
#include <cstring>

#include "cluster_backward.h"
#include "cluster_forward.h"

namespace fastrnn::cuda {
namespace {

template <class T, class Cell>
struct Launches {
  static ClusterShape shape(bool backward, Index hidden_size) {
    return {Cell::gates, Cell::states, Cell::operand_gates, int(sizeof(T)), backward, hidden_size};
  }

  // Sequences are dealt to as many clusters as run at once, up to 8 each; more clusters queue.
  static bool layout(bool backward, Index batch, Index hidden_size, int cluster, int processors,
                     Index shared_limit, Layout* layout) {
    if (batch < 1 || cluster < 2 || cluster > 16 || processors < cluster) return false;
    if (batch > INT32_MAX || hidden_size > INT32_MAX / octet) return false;
    const Index at_once = processors / cluster, share = (batch + at_once - 1) / at_once;
    const int tile = int(share < columns ? share : columns);
    const ClusterPlan p = cluster_plan(shape(backward, hidden_size), cluster, tile, shared_limit);
    if (p.jobs == 0) return false;
    *layout = {cluster, int((batch + tile - 1) / tile), tile, p.threads(), p.shared, 0};
    return true;
  }

  // The same choice again: what costs least within the limit is no larger than itself.
  template <class Kernels, class Arguments>
  static int launch_with(const Kernels& kernels, bool backward, const Arguments& arguments,
                         const Steps& steps, const void* weight_hh, const Layout& layout,
                         void* stream) {
    const ClusterPlan p = cluster_plan(shape(backward, arguments.hidden_size), layout.cluster,
                                       layout.tile, layout.shared);
    const auto kernel = kernels(p);
    const Grid grid{unsigned(layout.cluster) * unsigned(layout.clusters), 1, p.threads(), p.shared,
                    layout.cluster};
    return launch(kernel, grid, stream, arguments, Regularisers(arguments.extras), steps,
                  static_cast<const T*>(weight_hh), p);
  }

  static int forward(const Forward& f, const Steps& steps, const void* weight_hh,
                     const Layout& layout, void*, void* stream) {
    const auto kernels = [](const ClusterPlan& p) {
      if constexpr (sizeof(T) == 2)
        return p.held == Held::most ? cluster_forward<T, Cell, Held::most>
                                    : cluster_forward<T, Cell, Held::some>;
      else
        return cluster_forward<T, Cell, Held::none>;
    };
    return launch_with(kernels, false, f, steps, weight_hh, layout, stream);
  }

  static int backward(const Backward& b, const Steps& steps, const void* weight_hh,
                      const Layout& layout, void*, void* stream) {
    const auto kernels = [](const ClusterPlan& p) {
      if constexpr (sizeof(T) == 2)
        return p.held == Held::most ? cluster_backward<T, Cell, Held::most>
                                    : cluster_backward<T, Cell, Held::some>;
      else
        return cluster_backward<T, Cell, Held::none>;
    };
    return launch_with(kernels, true, b, steps, weight_hh, layout, stream);
  }
};

template <class T, class Cell>
constexpr PersistentKernels kernels = {Launches<T, Cell>::layout, Launches<T, Cell>::forward,
                                       Launches<T, Cell>::backward};

template <class Cell>
const PersistentKernels* of_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::float32:
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

}  // namespace fastrnn::cuda
