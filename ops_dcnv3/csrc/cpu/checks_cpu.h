// SPDX-License-Identifier: Apache-2.0
// What the CPU's kernels ask of a geometry.
#pragma once

#include <limits>

#include "../checks.h"

namespace dcnv3 {

// They count pixels, and the numbers of a row, in integers that are as wide as
// the accumulator.
inline void check_sides(const Tensor& input, const Geometry& g) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 1;
  DCNV3_CHECK(
      g.height * g.width <= kMost && g.width * g.channels() <= kMost,
      "input: expected images of fewer than 2^31 - 1 pixels, and rows of fewer "
      "than 2^31 - 1 numbers, got ",
      text_of(input.sizes()));
}

}  // namespace dcnv3
