// SPDX-License-Identifier: Apache-2.0
// Body of DCNv3's forward kernel on the CPU. Included, as vectors.h, after the
// instruction set is chosen.
#pragma once

#include "plan_impl.h"

namespace dcnv3 {
namespace DCNV3_CAPABILITY {

// The pixel of zeros is elsewhere in memory.
constexpr int64_t kNowhere = -1;

// The points of a group in a plan.
template <typename acc_t>
struct GroupPoints {
  const acc_t* weights;
  const typename Accumulator<acc_t>::integer* pixel;
  const typename Accumulator<acc_t>::integer* down;
  const typename Accumulator<acc_t>::integer* right;

  void skip(int64_t count) {
    weights += 4 * count;
    pixel += count;
    down += count;
    right += count;
  }
};

// Write `registers` registers of the output of a group of `count` points; or
// `left` channels, unless is_whole. input is the image from these channels on,
// whose pixels are `step` apart.
template <int registers, bool is_whole, typename scalar_t, typename acc_t>
__attribute__((always_inline)) inline void gather_channels(
    GroupPoints<acc_t> points,
    int64_t count,
    const scalar_t* input,
    int64_t step,
    const scalar_t* zeros,
    int64_t left,
    scalar_t* output) {
  constexpr int lanes = kLanes<acc_t>;
  // One for each corner, as an addition waits for the one before.
  Lanes<acc_t> sums[registers][4] = {};
  const auto image = reinterpret_cast<uintptr_t>(input);
  const auto outside = reinterpret_cast<uintptr_t>(zeros);
  const int64_t step_bytes = step * sizeof(scalar_t);
#pragma GCC unroll 1
  for (int64_t i = 0; i < count; ++i) {
    const int64_t pixel = points.pixel[i];
    const uintptr_t inside = image + pixel * step_bytes;
    // By bits, as a branch on what is outside would be hard to predict.
    const auto is_outside = static_cast<uintptr_t>(pixel >> 63);
    const auto* upper = reinterpret_cast<const scalar_t*>(
        inside ^ ((inside ^ outside) & is_outside));
    const scalar_t* lower = upper + points.down[i];
    const int64_t right = points.right[i];
    const scalar_t* const corners[4] = {
        upper,
        upper + right,
        lower,
        lower + right};
    Lanes<acc_t> weights[4];
    spread_four(points.weights + 4 * i, weights);
#pragma GCC unroll 2
    for (int j = 0; j < registers; ++j) {
#pragma GCC unroll 4
      for (int corner = 0; corner < 4; ++corner) {
        const scalar_t* source = corners[corner] + j * lanes;
        const auto features =
            is_whole ? load(source) : load_some<acc_t>(source, left);
        sums[j][corner] += weights[corner] * features;
      }
    }
  }
  for (int j = 0; j < registers; ++j) {
    const Lanes<acc_t> sum =
        (sums[j][0] + sums[j][1]) + (sums[j][2] + sums[j][3]);
    const int64_t written = is_whole ? lanes : left;
    if constexpr (sizeof(scalar_t) < sizeof(acc_t)) {
      for (int i = 0; i < written; ++i) {
        output[j * lanes + i] = static_cast<scalar_t>(sum[i]);
      }
    } else {
      __builtin_memcpy(output + j * lanes, &sum, written * sizeof(acc_t));
    }
  }
}

// Apply a plan of some pixels and groups to some channels of each group. input
// is the image and output the first pixel, both from these channels of the
// first group on; soon is what to have ready for the pixels of a later call.
// known_count is the number of points of a group where the compiler should know
// it, 0 elsewhere. Never inlined: the loop over points needs all registers.
template <
    int registers,
    bool is_whole,
    int known_count,
    typename scalar_t,
    typename acc_t>
__attribute__((noinline)) void gather(
    const Geometry& g,
    const Plan<acc_t>& plan,
    int64_t pixels,
    int64_t groups,
    const scalar_t* input,
    const scalar_t* zeros,
    const scalar_t* soon,
    int64_t left,
    scalar_t* output) {
  const int64_t count = known_count > 0 ? known_count : plan.points;
  const int64_t step = g.channels();
  const int64_t group_step = g.group_channels;
  GroupPoints<acc_t> points{
      plan.weights(),
      plan.pixel(),
      plan.down(),
      plan.right()};
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t channel = group * group_step;
      __builtin_prefetch(soon + channel);
      gather_channels<registers, is_whole>(
          points,
          count,
          input + channel,
          step,
          zeros,
          left,
          output + channel);
      points.skip(count);
    }
    soon += step;
    output += step;
  }
}

// Apply a plan to all channels of each group.
template <int known_count, typename scalar_t, typename acc_t>
inline void gather_all(
    const Geometry& g,
    const Plan<acc_t>& plan,
    int64_t pixels,
    int64_t groups,
    const scalar_t* input,
    const scalar_t* zeros,
    const scalar_t* soon,
    scalar_t* output) {
  constexpr int lanes = kLanes<acc_t>;
  for (int64_t channel = 0, done; channel < g.group_channels; channel += done) {
    const int64_t left = g.group_channels - channel;
    done = left >= 2 * lanes ? 2 * lanes : left >= lanes ? lanes : left;
    const auto gather_some =
        left >= 2 * lanes ? &gather<2, true, known_count, scalar_t, acc_t>
        : left >= lanes   ? &gather<1, true, known_count, scalar_t, acc_t>
                          : &gather<1, false, known_count, scalar_t, acc_t>;
    gather_some(
        g,
        plan,
        pixels,
        groups,
        input + channel,
        zeros,
        soon + channel,
        left,
        output + channel);
  }
}

// How many rows of the input below a point's own are fetched from memory: the
// first sample of a row would wait for it, as the hardware can not tell from
// the samples before which row is next.
constexpr int64_t kRowsAhead = 8;

template <typename scalar_t, typename point_t>
void forward(
    const Geometry& g,
    const ForwardPointers<scalar_t, point_t>& p,
    int64_t begin,
    int64_t end) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int64_t image_size = g.height * g.width * g.channels();
  const Plan<acc_t> plan(g, g.groups);
  Scratch<scalar_t> zeros(g.group_channels);
  zeros.zero();
  const auto gather_plan = plan.points == 9 ? &gather_all<9, scalar_t, acc_t>
                                            : &gather_all<0, scalar_t, acc_t>;
  int64_t planned_groups = 0;

  for (int64_t pixel = begin, pixels; pixel < end; pixel += pixels) {
    pixels = g.out_width - pixel % g.out_width;
    pixels = pixels < end - pixel ? pixels : end - pixel;
    pixels = pixels < plan.pixels ? pixels : plan.pixels;
    const int64_t n = pixel / (g.out_width * g.out_height);
    const int64_t row = pixel / g.out_width % g.out_height * g.stride_h;
    const int64_t column = pixel % g.out_width * g.stride_w;
    const int64_t soon = ((row + kRowsAhead) * g.width + column) * g.channels();
    for (int64_t group = 0, groups; group < g.groups; group += groups) {
      groups = g.groups - group;
      groups = groups < plan.groups ? groups : plan.groups;
      if (groups != planned_groups) {
        plan_taps(g, groups, plan);
        planned_groups = groups;
      }
      const int64_t q = (pixel - begin) * g.groups + group;
      plan_pixels<false>(
          g,
          pixel,
          pixels,
          groups,
          p.offset + q * plan.points * 2,
          p.mask + q * plan.points,
          g.channels(),
          kNowhere,
          plan);
      const scalar_t* input =
          p.input + n * image_size + group * g.group_channels;
      gather_plan(
          g,
          plan,
          pixels,
          groups,
          input,
          zeros.data(),
          input + (soon < image_size ? soon : 0),
          p.output + q * g.group_channels);
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
