// SPDX-License-Identifier: Apache-2.0
// Which of the compiled kernels serves a call. Includes nothing of PyTorch.
#pragma once

#include <type_traits>

#include "sites.cuh"

namespace dcnv3 {

// Call launch.template run<Traits>() for the widest vectors and the most
// special kernel that fit the call.
template <
    template <typename, typename, int, typename> class Traits,
    typename scalar_t,
    typename point_t,
    typename Launch>
void dispatch_taps(const Geometry& g, const Launch& launch) {
  constexpr int kWide = Traits<scalar_t, point_t, 1, AnyTaps>::kWide;
  if (g.group_channels % kWide != 0) {
    launch.template run<Traits<scalar_t, point_t, 1, AnyTaps>>();
    return;
  }
  if constexpr (!std::is_same_v<scalar_t, double>) {
    if (fits_32_bits(g) && !g.remove_center && g.kernel_h == g.kernel_w) {
      using Three = Traits<scalar_t, point_t, kWide, FixedTaps<3, 3>>;
      using Five = Traits<scalar_t, point_t, kWide, FixedTaps<5, 5>>;
      if (g.kernel_h == 3 && Three::fits(g)) {
        launch.template run<Three>();
        return;
      }
      if (g.kernel_h == 5 && Five::fits(g)) {
        launch.template run<Five>();
        return;
      }
    }
  }
  launch.template run<Traits<scalar_t, point_t, kWide, AnyTaps>>();
}

}  // namespace dcnv3
