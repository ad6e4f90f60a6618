// Which schedule runs a recurrence on a CUDA device, and why the others do not. Host code only: it
// asks no device and launches nothing.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "kernels_cuda.h"

namespace fastrnn::cuda {

enum class Schedule { cluster, grid, step };  // the fastest first
constexpr std::array<const char*, 3> schedule_names{"cluster", "grid", "step"};

// What one launch does that another schedule can do instead; see `Failures`.
constexpr std::array<const char*, 3> launch_names{"cluster", "grid", "layers"};
constexpr std::size_t layers_in_one_launch = 2;
// Why a device refused such a launch, in CUDA's words; empty if it did not.
using Failures = std::array<std::string, launch_names.size()>;

// What a device offers to one kernel.
struct Offer {
  int capability;                 // 90 for compute capability 9.0
  int processors;                 // multiprocessors
  std::int64_t shared_memory;     // bytes of shared memory that one block can have
  std::array<int, 4> clusters{};  // of 2, 4, 8, 16 blocks that run at once; all 0: not known

  // Clusters of so many blocks, 1 to 16, that run at once. A cluster lies within a group of
  // multiprocessors, of which some are left over: groups have at least 16, on whole devices.
  int at_once(int cluster) const {
    if (cluster == 1) return processors;
    std::size_t i = 0;
    while (2 << i < cluster) ++i;
    if (clusters[0] > 0) return clusters[i];
    return processors < 16 ? processors / cluster : processors / 16 * (16 / cluster);
  }
};

struct Request {
  std::string cell;  // a name of fastrnn/cells.py
  Dtype dtype;
  std::int64_t steps, batch, hidden_size;  // T, B, H; with ragged rows T*B is at least N
  int directions = 1;                      // of a layer, side by side on one device
  int layers = 1;                          // of one direction, one above the other
  bool backward = false;
  bool layer_norm = false, projected = false;
  std::string asked = "auto";  // or the one schedule that may run
  Failures failed;             // of launches before this one
};

struct Plan {
  std::optional<Schedule> schedule;    // none: no schedule can run it
  Layout layout{};                     // of a persistent schedule
  int at_once = 1;                     // directions that run side by side, else one by one
  int layers = 1;                      // that run in one launch, else one by one
  std::string apart;                   // why they run one by one, if more were asked for
  double cycles = 0;                   // of a step of those, an estimate
  std::int64_t elements = 0;           // of the largest array
  std::array<std::string, 3> refused;  // by schedule; empty for the one that runs

  // Of launch_names, for a persistent schedule.
  std::size_t launch() const { return layers > 1 ? layers_in_one_launch : std::size_t(*schedule); }

  // All of it in one line.
  std::string text() const;
};

// What the process asks for: "auto" until someone says otherwise.
const char* schedule_asked();
void ask_schedule(const std::string& name);

// Whether it lets products of float32 numbers be TF32's; not until someone says so.
bool tf32_allowed();
void allow_tf32(bool allowed);

// A launch that a device, by its number, refused is not tried again on it in this process.
void remember_failure(int device, std::size_t launch, const std::string& why);
Failures launch_failures(int device);

// Throws std::invalid_argument, in one line, for a request that makes no sense.
Plan plan(const Request& request, const Offer& offer);

}  // namespace fastrnn::cuda
