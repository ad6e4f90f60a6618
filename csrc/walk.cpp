#include "walk.h"

#include <algorithm>

namespace fastrnn::cuda {

std::vector<Step> walk(const std::vector<std::int64_t>& batch_sizes, bool reverse) {
  std::vector<Step> steps;
  std::int64_t row = 0;
  for (std::size_t t = 0; t < batch_sizes.size() && batch_sizes[t] > 0; ++t) {
    steps.push_back({std::int64_t(t), row, batch_sizes[t], 0, 0, 0, 0});
    row += batch_sizes[t];
  }
  if (reverse) std::reverse(steps.begin(), steps.end());
  for (std::size_t i = 1; i < steps.size(); ++i) {
    Step &before = steps[i - 1], &after = steps[i];
    before.next_rows = after.prev_rows = std::min(before.rows, after.rows);
    before.next_row = after.row, after.prev_row = before.row;
  }
  return steps;
}

}  // namespace fastrnn::cuda
