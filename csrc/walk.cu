#include <algorithm>

#include "gpu.h"
#include "walk.h"

namespace fastrnn::cuda {

namespace {

// As many as fit the 4 KB of a kernel's arguments.
struct Chunk {
  Step steps[64];
};
constexpr int chunk_steps = sizeof(Chunk) / sizeof(Step);

__global__ void write_chunk(Chunk chunk, int count, Step* table) {
  const int i = threadIdx.x;
  if (i < count) table[i] = chunk.steps[i];
}

}  // namespace

int write_steps(const Step* steps, std::int64_t count, Step* table, void* stream) {
  for (std::int64_t done = 0; done < count; done += chunk_steps) {
    const int now = int(std::min<std::int64_t>(chunk_steps, count - done));
    Chunk chunk{};
    std::copy_n(steps + done, now, chunk.steps);
    const int error =
        launch(write_chunk, Grid{1, 1, chunk_steps}, stream, chunk, now, table + done);
    if (error) return error;
  }
  return 0;
}

}  // namespace fastrnn::cuda
