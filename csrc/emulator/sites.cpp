#include "sites.h"

#include <algorithm>

namespace emulator {
namespace {

struct Known {
  const char *kind, *file;
  unsigned line;
  std::size_t site;
};

std::vector<Known> known;
std::vector<std::string> names;
std::string taken_out;

}  // namespace

const std::vector<std::string>& sites() { return names; }

void forget_sites() {
  known.clear();
  names.clear();
}

void remove_site(const char* site) { taken_out = site; }

bool removed(const char* kind, const std::source_location& where) {
  const auto match = [&](const Known& one) {
    return one.line == where.line() && one.file == where.file_name() && one.kind == kind;
  };
  auto found = std::find_if(known.begin(), known.end(), match);
  if (found == known.end()) {
    const std::string path = where.file_name();
    const std::string name =
        path.substr(path.rfind('/') + 1) + ":" + std::to_string(where.line()) + " " + kind;
    const auto same = std::find(names.begin(), names.end(), name);
    const auto site = std::size_t(same - names.begin());
    if (same == names.end()) names.push_back(name);
    known.push_back({kind, where.file_name(), where.line(), site});
    found = known.end() - 1;
  }
  return !taken_out.empty() && names[found->site] == taken_out;
}

}  // namespace emulator
