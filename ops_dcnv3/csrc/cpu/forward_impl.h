// SPDX-License-Identifier: Apache-2.0
// Body of DCNv3's forward kernel on the CPU. Included, as vectors.h, after the
// instruction set is chosen.
#pragma once

#include "plan_impl.h"

namespace dcnv3 {
namespace DCNV3_CAPABILITY {

// Write a register of the output of one group, of points that start at `first`.
template <bool is_whole, typename scalar_t, typename acc_t>
inline void gather(
    const Plan<acc_t>& plan,
    int64_t first,
    const scalar_t* input,
    int64_t channels,
    scalar_t* output) {
  Lanes<acc_t> sums[4] = {};  // four, as each addition waits for the last
  for (int64_t i = first; i < first + plan.points; ++i) {
    for (int corner = 0; corner < 4; ++corner) {
      const scalar_t* source = at(input, plan.position(corner)[i]);
      const auto features =
          is_whole ? load(source) : load_some<acc_t>(source, channels);
      sums[corner] += plan.weight(corner)[i] * features;
    }
  }
  const Lanes<acc_t> sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  if constexpr (sizeof(scalar_t) < sizeof(acc_t)) {
    for (int i = 0; i < (is_whole ? kLanes<acc_t> : channels); ++i) {
      output[i] = static_cast<scalar_t>(sum[i]);
    }
  } else {
    __builtin_memcpy(
        output,
        &sum,
        is_whole ? sizeof(sum) : channels * sizeof(acc_t));
  }
}

template <typename scalar_t, typename point_t>
void forward(
    const Geometry& g,
    const ForwardPointers<scalar_t, point_t>& p,
    int64_t begin,
    int64_t end) {
  using acc_t = typename Accumulator<scalar_t>::type;
  constexpr int lanes = kLanes<acc_t>;
  const int64_t channels = g.group_channels;
  const int64_t whole = channels / lanes * lanes;
  const int64_t column_step = g.channels();
  const int64_t image_size = g.height * g.width * column_step;
  const Plan<acc_t> plan(g, g.groups);
  Scratch<scalar_t> zeros(column_step);
  zeros.zero();
  int64_t planned_groups = 0;

  for (int64_t pixel = begin, pixels; pixel < end; pixel += pixels) {
    pixels = g.out_width - pixel % g.out_width;
    pixels = pixels < end - pixel ? pixels : end - pixel;
    pixels = pixels < plan.pixels ? pixels : plan.pixels;
    const int64_t n = pixel / (g.out_width * g.out_height);
    const scalar_t* image = p.input + n * image_size;
    const int64_t nowhere = distance<scalar_t>(image, zeros.data());
    for (int64_t group = 0, groups; group < g.groups; group += groups) {
      groups = g.groups - group;
      groups = groups < plan.groups ? groups : plan.groups;
      if (groups != planned_groups) {
        plan_taps(g, groups, plan);
        planned_groups = groups;
      }
      const int64_t q = pixel * g.groups + group;
      plan_pixels<false>(
          g,
          pixel,
          pixels,
          groups,
          p.offset + q * plan.points * 2,
          p.mask + q * plan.points,
          column_step,
          nowhere,
          plan);
      int64_t first = 0;
      for (int64_t i = 0; i < pixels; ++i) {
        scalar_t* output = p.output + (q + i * g.groups) * channels;
        const scalar_t* input = image + group * channels;
        for (int64_t j = 0; j < groups; ++j) {
          for (int64_t channel = 0; channel < whole; channel += lanes) {
            gather<true>(plan, first, input + channel, 0, output + channel);
          }
          if (whole < channels) {
            gather<false>(
                plan,
                first,
                input + whole,
                channels - whole,
                output + whole);
          }
          first += plan.points;
          input += channels;
          output += channels;
        }
      }
    }
  }
}

#define DCNV3_INSTANTIATE(scalar_t, point_t)     \
  template void forward(                         \
      const Geometry&,                           \
      const ForwardPointers<scalar_t, point_t>&, \
      int64_t,                                   \
      int64_t);
DCNV3_FOR_EACH_DTYPES(DCNV3_INSTANTIATE)
#undef DCNV3_INSTANTIATE

}  // namespace DCNV3_CAPABILITY
}  // namespace dcnv3
