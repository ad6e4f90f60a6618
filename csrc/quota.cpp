#include "quota.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <fstream>

namespace fastrnn {

// By one group alone: microseconds of every period, which version 1 has in files of their own.
static int allowed_by(const std::string& group) {
  double quota = 0, period = 0;  // no number (version 2's "max") leaves 0, version 1 has -1
  if (std::ifstream both(group + "/cpu.max"); both) {
    both >> quota >> period;
  } else {
    std::ifstream(group + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(group + "/cpu.cfs_period_us") >> period;
  }
  const bool limited = quota > 0 && period > 0 && quota / period < INT_MAX;
  return limited ? int(std::ceil(quota / period)) : INT_MAX;
}

int processors_allowed(const std::string& root) {
  int least = INT_MAX;
  std::ifstream groups(root + "/proc/self/cgroup");
  // Lines of hierarchy:controllers:path; version 2 is the one without controllers.
  for (std::string line; std::getline(groups, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == line.npos || second == line.npos) continue;
    std::string controllers = line.substr(first, second - first + 1);
    std::replace(controllers.begin(), controllers.end(), ':', ',');
    if (controllers != ",," && controllers.find(",cpu,") == line.npos) continue;
    const std::string mount = root + "/sys/fs/cgroup" + (controllers == ",," ? "" : "/cpu");
    // Every group around it has a say. Inside a container the path may be the host's, of which only
    // the last, empty one is found.
    std::string path = line.substr(second + 1);
    least = std::min(least, allowed_by(mount + path));
    while (!path.empty()) {
      path.resize(std::min(path.rfind('/'), path.size() - 1));
      least = std::min(least, allowed_by(mount + path));
    }
  }
  return least;
}

int processors_allowed() {
  static const int allowed = processors_allowed("");
  return allowed;
}

}  // namespace fastrnn
