// The steps of the walk over packed rows, on the host and in a device's memory.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels_cuda.h"

namespace fastrnn::cuda {

// In the order they are taken; steps without rows are left out.
std::vector<Step> walk(const std::vector<std::int64_t>& batch_sizes, bool reverse);

// Queues the writing of `count` steps to `table` in the device's memory; returns a cudaError_t. The
// steps travel as kernel arguments: a copy from the host's memory would have to be waited for, and
// a graph's replay would read that memory again.
int write_steps(const Step* steps, std::int64_t count, Step* table, void* stream);

}  // namespace fastrnn::cuda
