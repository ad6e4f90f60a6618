// The grid-persistent schedule (sm_80 and later): its layouts and launches.
#include <cstring>

#include "grid_kernels.h"

namespace fastrnn::cuda {
namespace {

template <class T, class Cell>
struct Launches {
  static ClusterPlan plan(bool backward, Index batch, Index hidden_size, int blocks, int share,
                          Index shared_limit) {
    const int tile = int(batch < columns ? batch : columns);
    ClusterShape shape = cell_shape<T, Cell>(backward, false, hidden_size);
    shape.grid = true, shape.tiles = tiles(batch, tile), shape.share = share;
    return cluster_plan(shape, blocks, tile, shared_limit);
  }
  static int tiles(Index batch, int tile) { return int((batch + tile - 1) / tile); }

  static bool layout(bool backward, Index batch, Index hidden_size, int blocks, int share,
                     int processors, Index shared_limit, Layout* layout) {
    if (batch < 1 || share < 1 || share > 8 || blocks < share || processors < blocks) return false;
    if (batch > max_batch || hidden_size > INT32_MAX / octet || blocks % share) return false;
    const ClusterPlan p = plan(backward, batch, hidden_size, blocks, share, shared_limit);
    if (p.jobs == 0) return false;
    const Index rows = Index(p.buffers) * tiles(batch, p.tile) * p.tile * p.stride;
    *layout = {p.blocks(hidden_size),
               1,
               share,
               p.tile,
               p.threads(),
               p.shared,
               flag_bytes + rows * Index(sizeof(T))};
    return true;
  }

  // The same choice again: what costs least within the limit is no larger than itself.
  template <class Kernel, class Pass>
  static int launch_one(const Kernel& most, const Kernel& some, bool backward,
                        const Way<Pass>* ways, int count, const Layout& layout, void* workspace,
                        void* stream) {
    const Index batch = ways->pass.batch;
    const ClusterPlan p =
        plan(backward, batch, ways->pass.hidden_size, layout.cluster, layout.share, layout.shared);
    const Grid grid{
        unsigned(layout.cluster), unsigned(count), p.threads(), p.shared, layout.share, true};
    return launch(p.held == Held::most ? most : some, grid, stream, Ways<T, Pass>(ways, count), p,
                  tiles(batch, p.tile), static_cast<unsigned char*>(workspace), layout.bytes);
  }

  static int forward(const Way<Forward>* ways, int count, const Layout& layout, void* workspace,
                     void* stream) {
    return launch_one(grid_forward<T, Cell, Held::most>, grid_forward<T, Cell, Held::some>, false,
                      ways, count, layout, workspace, stream);
  }

  static int backward(const Way<Backward>* ways, int count, const Layout& layout, void* workspace,
                      void* stream) {
    return launch_one(grid_backward<T, Cell, Held::most>, grid_backward<T, Cell, Held::some>, true,
                      ways, count, layout, workspace, stream);
  }

  // With more, the device is busy without a persistent kernel.
  static constexpr Index max_batch = 64;
};

template <class T, class Cell>
constexpr PersistentKernels kernels = {Launches<T, Cell>::layout, Launches<T, Cell>::forward,
                                       Launches<T, Cell>::backward};

template <class Cell>
const PersistentKernels* of_dtype(Dtype dtype) {
  if (dtype == Dtype::tf32) return &kernels<float, Cell>;
  if (dtype == Dtype::float16) return &kernels<Half, Cell>;
  if (dtype == Dtype::bfloat16) return &kernels<BFloat16, Cell>;
  return nullptr;
}

}  // namespace

const PersistentKernels* grid_kernels(const char* cell, Dtype dtype) {
  const auto is = [cell](const char* name) { return std::strcmp(cell, name) == 0; };
  if (is("lstm")) return of_dtype<device::Lstm>(dtype);
  if (is("gru")) return of_dtype<device::Gru>(dtype);
  if (is("gru_reset_before")) return of_dtype<device::GruResetBefore>(dtype);
  if (is("rnn_tanh")) return of_dtype<device::RnnTanh>(dtype);
  if (is("rnn_relu")) return of_dtype<device::RnnRelu>(dtype);
  return nullptr;
}

}  // namespace fastrnn::cuda
