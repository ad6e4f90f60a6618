// The Python module fastrnn._C: facts about how the library was built. No op lives here; the ops
// are in libfastrnn.so, which knows no Python.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "build_facts.h"  // written by the build: FASTRNN_FLAGS, FASTRNN_TORCH_VERSION, ...

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
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Host-side functions of fastrnn's compiled part.";
  m.def("build_info", &build_info,
        "How the library was built.\n\n"
        "Returns:\n"
        "    dict: compiler, flags, torch (the version built against), instruction_sets (list),\n"
        "    cuda_archs (list, empty without CUDA), cuda_reason (why there is no CUDA, else '').");
}
