// SPDX-License-Identifier: Apache-2.0
// Which instruction set to use, and how much work a thread should get.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "../geometry.h"

namespace dcnv3 {

enum class Capability { kBaseline, kAvx2, kAvx512 };

// The best instruction set of this machine. ATEN_CPU_CAPABILITY (default, avx2
// or avx512), PyTorch's own switch for its kernels, can lower it.
inline Capability find_capability() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");
  const char* setting = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string limit = setting ? setting : "avx512";
  if (limit == "default" || !has_avx2) {
    return Capability::kBaseline;
  }
  return limit == "avx2" || !has_avx512 ? Capability::kAvx2
                                        : Capability::kAvx512;
#else
  return Capability::kBaseline;
#endif
}

inline Capability capability() {
  static const Capability found = find_capability();
  return found;
}

// The kernel of a name for the instruction set of this machine.
#if defined(__x86_64__)
#define DCNV3_BEST_KERNEL(...)                                \
  (capability() == Capability::kAvx512 ? &avx512::__VA_ARGS__ \
   : capability() == Capability::kAvx2 ? &avx2::__VA_ARGS__   \
                                       : &baseline::__VA_ARGS__)
#else
#define DCNV3_BEST_KERNEL(...) (&baseline::__VA_ARGS__)
#endif

// Items a thread takes at least, so that a task is worth its start (about 10 us
// at a few multiply-adds per nanosecond).
inline int64_t grain_size(int64_t work_per_item) {
  constexpr int64_t kWorkPerTask = 32768;
  return std::max<int64_t>(
      1,
      kWorkPerTask / std::max<int64_t>(1, work_per_item));
}

// Pixels a thread takes at least: of the forward pass, and of the depthwise
// branch.
inline int64_t forward_grain(const Geometry& g) {
  return grain_size(g.channels() * g.points());
}

inline int64_t branch_grain(const BranchSizes& sizes) {
  // GELU costs about as much as 16 taps.
  return grain_size(sizes.channels * (sizes.kernel_h * sizes.kernel_w + 16));
}

}  // namespace dcnv3
