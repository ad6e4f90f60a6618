// The Python module fastrnn._C: facts about how the library was built. No op lives here; the ops
// are in libfastrnn.so, which knows no Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>

#include "build_facts.h"  // written by the build: FASTRNN_FLAGS, FASTRNN_TORCH_VERSION, ...
#include "plan.h"

namespace py = pybind11;

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "gcc " __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
#endif

py::list split(const std::string& joined) {
  py::list parts;
  std::istringstream stream(joined);
  for (std::string part; std::getline(stream, part, ',');) parts.append(part);
  return parts;
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = kCompiler;
  info["flags"] = FASTRNN_FLAGS;
  info["torch"] = FASTRNN_TORCH_VERSION;
  info["instruction_sets"] = split(FASTRNN_INSTRUCTION_SETS);
  info["cuda_archs"] = split(FASTRNN_CUDA_ARCHS);
  info["cuda_reason"] = FASTRNN_CUDA_REASON;
  info["schemas"] = FASTRNN_SCHEMAS;
  return info;
}

fastrnn::cuda::Dtype dtype_named(const std::string& name) {
  using fastrnn::cuda::Dtype;
  if (name == "float32") return Dtype::float32;
  if (name == "float64") return Dtype::float64;
  if (name == "float16") return Dtype::float16;
  if (name == "bfloat16") return Dtype::bfloat16;
  if (name == "tf32") return Dtype::tf32;
  throw std::invalid_argument(
      "plan: dtype must be float16, bfloat16, float32, tf32 or float64, got '" + name + "'");
}

py::dict plan(const std::string& cell, const std::string& dtype, std::int64_t steps,
              std::int64_t batch, std::int64_t hidden_size, int directions, int layers,
              bool backward, bool layer_norm, bool projected, const std::string& schedule,
              const std::map<std::string, std::string>& failed, int capability, int processors,
              std::int64_t shared_memory, const std::array<int, 4>& clusters) {
  fastrnn::cuda::Failures failures;
  for (std::size_t i = 0; i < failures.size(); ++i)
    if (const auto why = failed.find(fastrnn::cuda::launch_names[i]); why != failed.end())
      failures[i] = why->second;
  const fastrnn::cuda::Plan found =
      fastrnn::cuda::plan({cell, dtype_named(dtype), steps, batch, hidden_size, directions, layers,
                           backward, layer_norm, projected, schedule, failures},
                          {capability, processors, shared_memory, clusters});
  const fastrnn::cuda::Layout& layout = found.layout;
  py::dict refused;
  for (std::size_t i = 0; i < found.refused.size(); ++i)
    if (!found.refused[i].empty()) refused[fastrnn::cuda::schedule_names[i]] = found.refused[i];
  py::dict result;
  result["schedule"] =
      found.schedule ? fastrnn::cuda::schedule_names[std::size_t(*found.schedule)] : "";
  result["text"] = found.text();
  result["elements"] = found.elements;
  result["cluster"] = layout.cluster;
  result["clusters"] = layout.clusters;
  result["at_once"] = found.at_once;
  result["layers"] = found.layers;
  result["apart"] = found.apart;
  result["share"] = layout.share;
  result["tile"] = layout.tile;
  result["threads"] = layout.threads;
  result["shared"] = layout.shared;
  result["workspace"] = layout.bytes;
  result["refused"] = refused;
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Host-side functions of fastrnn's compiled part.";
  m.def("build_info", &build_info,
        "How the library was built.\n\n"
        "Returns:\n"
        "    dict: compiler, flags, torch (the version built against), instruction_sets (list),\n"
        "    cuda_archs (list, empty without CUDA), cuda_reason (why there is no CUDA, else '').");
  m.def(
      "plan", &plan, py::arg("cell"), py::arg("dtype"), py::arg("steps"), py::arg("batch"),
      py::arg("hidden_size"), py::kw_only(), py::arg("directions") = 1, py::arg("layers") = 1,
      py::arg("backward") = false, py::arg("layer_norm") = false, py::arg("projected") = false,
      py::arg("schedule") = "auto", py::arg("failed") = py::dict(), py::arg("capability"),
      py::arg("processors"), py::arg("shared_memory"), py::arg("clusters") = std::array<int, 4>{},
      "Which schedule runs a recurrence on a CUDA device; asks no device.\n\n"
      "Args:\n"
      "    cell: a key of fastrnn.cells.CELLS that is compiled.\n"
      "    dtype: float16, bfloat16, float32, float64, or tf32: float32 whose products may be.\n"
      "    steps, batch, hidden_size: T, B, H.\n"
      "    directions: 1 or 2 side by side; default 1.\n"
      "    layers: of one direction, in one launch if that is faster; default 1.\n"
      "    backward: the backward pass; default False.\n"
      "    layer_norm: default False.\n"
      "    projected: whether h is (an LSTM's proj_size); default False.\n"
      "    schedule: auto, cluster, grid or step; default auto.\n"
      "    failed: why launches (cluster, grid, layers) were refused before; default none were.\n"
      "    capability: compute capability times ten, as an int.\n"
      "    processors: multiprocessors.\n"
      "    shared_memory: bytes one block can have.\n"
      "    clusters: of 2, 4, 8 and 16 blocks that run at once; default 0, not known.\n"
      "Returns:\n"
      "    dict: schedule ('' for none), text, elements (of the largest array), cluster (blocks),\n"
      "    at_once (directions side by side), layers (in one launch), apart (why not), clusters, "
      "share (blocks that share k), tile "
      "(sequences of a cluster), threads (of a "
      "block), shared (bytes of a\n"
      "    block), workspace (bytes), refused (schedule -> reason).\n"
      "Raises:\n"
      "    ValueError: a size, the cell, the dtype or the schedule makes no sense.");
}
