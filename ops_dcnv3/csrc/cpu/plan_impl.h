// SPDX-License-Identifier: Apache-2.0
// What the kernels of DCNv3 on the CPU have in common. Included, as vectors.h,
// after the instruction set is chosen.
//
// Both work in two steps. A Plan holds, for all points of some groups of a few
// output pixels, where their corners are and what they weigh: arithmetic that
// is the same for every point, done for a register of points at a time. Then
// the plan is applied to the channels of each group, a register at a time,
// without a branch. Each kernel adds to the plan what it wants to know.
#pragma once

#include "vectors.h"

namespace dcnv3 {
namespace DCNV3_CAPABILITY {

// Widen count numbers to the accumulator's type.
template <typename acc_t, typename source_t>
inline void widen(const source_t* source, int64_t count, acc_t* target) {
  int64_t i = 0;
  for (; i + kLanes<acc_t> <= count; i += kLanes<acc_t>) {
    store(target + i, load(source + i));
  }
  for (; i < count; ++i) {
    target[i] = static_cast<acc_t>(source[i]);
  }
}

// Room for the points of some output pixels: of neighbouring pixels of a row,
// and of the same groups of each.
template <typename acc_t>
class Plan {
 public:
  const int64_t points;  // of a group of a pixel
  const int64_t groups;  // at most, of a pixel
  const int64_t pixels;  // at most
  const int64_t size;    // of each array: a whole number of registers

 private:
  Scratch<acc_t> numbers_;

 public:
  // A plan for at most the groups given.
  Plan(const Geometry& g, int64_t most_groups)
      : points(g.points()),
        groups(clamp(kPoints / points, most_groups)),
        pixels(clamp(kPoints / (points * groups), g.out_width)),
        size((pixels * groups * points / kLanes<acc_t> + 1) * kLanes<acc_t>),
        numbers_(6 * size) {
    numbers_.zero();
  }

  // Weight of each point, before the bilinear ones.
  acc_t* mask() const { return numbers_.data(); }
  // Distance of each point's pixel from the first one, in input pixels.
  acc_t* pixel_shift() const { return numbers_.data() + size; }
  // Distances of each point's tap from the centre of the kernel.
  acc_t* tap_y() const { return numbers_.data() + 2 * size; }
  acc_t* tap_x() const { return numbers_.data() + 3 * size; }
  // Pairs (x, y).
  acc_t* offset() const { return numbers_.data() + 4 * size; }

 private:
  // Points planned at once: a compromise between full registers and a plan that
  // stays in the first cache.
  static constexpr int64_t kPoints = 144;

  static int64_t clamp(int64_t fitting, int64_t most) {
    return fitting < 1 ? 1 : fitting < most ? fitting : most;
  }
};

// Write what all plans for as many groups have in common.
template <typename acc_t>
inline void
plan_taps(const Geometry& g, int64_t groups, const Plan<acc_t>& plan) {
  const acc_t scale = static_cast<acc_t>(g.offset_scale);
  int64_t i = 0;
  for (int64_t pixel = 0; pixel < plan.pixels; ++pixel) {
    for (int64_t group = 0; group < groups; ++group) {
      for (int32_t tap_w = 0; tap_w < g.kernel_w; ++tap_w) {
        for (int32_t tap_h = 0; tap_h < g.kernel_h; ++tap_h) {
          if (!g.is_removed(tap_h, tap_w)) {
            plan.pixel_shift()[i] = static_cast<acc_t>(pixel * g.stride_w);
            plan.tap_y()[i] =
                tap_shift<acc_t>(g.dilation_h, g.kernel_h, tap_h, scale);
            plan.tap_x()[i] =
                tap_shift<acc_t>(g.dilation_w, g.kernel_w, tap_w, scale);
            ++i;
          }
        }
      }
    }
  }
}

// Turn the logits of each group into weights.
template <typename acc_t>
inline void plan_softmax(const Plan<acc_t>& plan, int64_t count) {
  constexpr int lanes = kLanes<acc_t>;
  using integer = typename Accumulator<acc_t>::integer;
  // A register of a group's points may reach into those of the next group:
  // these keep their values, and take no part.
  const int64_t last = (plan.points - 1) / lanes * lanes;
  Integers<acc_t> lane;
  for (int j = 0; j < lanes; ++j) {
    lane[j] = j;
  }
  const auto beyond = lane >= static_cast<integer>(plan.points - last);
  const auto nothing = Lanes<acc_t>{} - static_cast<acc_t>(__builtin_inf());
  for (int64_t first = 0; first < count; first += plan.points) {
    acc_t* group = plan.mask() + first;
    const auto in_last = load(group + last);
    auto most = beyond ? nothing : in_last;
    for (int64_t j = 0; j < last; j += lanes) {
      const auto logits = load(group + j);
      most = logits > most ? logits : most;
    }
    const acc_t maximum = max_lanes<acc_t>(most);
    auto sums = exp_of(beyond ? nothing : in_last - maximum);
    store(group + last, beyond ? in_last : sums);
    for (int64_t j = 0; j < last; j += lanes) {
      const auto weights = exp_of(load(group + j) - maximum);
      sums += weights;
      store(group + j, weights);
    }
    const acc_t factor = 1 / sum_lanes<acc_t>(sums);
    for (int64_t j = 0; j < last; j += lanes) {
      store<acc_t>(group + j, load(group + j) * factor);
    }
    const auto weights = load(group + last);
    store<acc_t>(group + last, beyond ? weights : weights * factor);
  }
}

// A register of samples. Corner k = 0..3 of one is pixel (top + k / 2, left + k
// % 2).
template <typename acc_t>
struct Samples {
  // Numbers, so that comparisons work for images of any size.
  Lanes<acc_t> top;
  Lanes<acc_t> left;
  Bilinear<Lanes<acc_t>> bilinear;
  // Which rows and columns of corners are in the image, and whether any corner
  // is: all bits, or none.
  Integers<acc_t> has_top;
  Integers<acc_t> has_bottom;
  Integers<acc_t> has_left;
  Integers<acc_t> has_right;
  Integers<acc_t> is_inside;
};

// Place count points of output pixels from (ho, wo) on, with their offsets and
// weights, and call write(index of the first, samples, weights) for each
// register of them.
template <typename acc_t, typename write_t>
inline void place_samples(
    const Geometry& g,
    int64_t ho,
    int64_t wo,
    const acc_t* offset,
    const acc_t* mask,
    int64_t count,
    const Plan<acc_t>& plan,
    const write_t& write) {
  constexpr int lanes = kLanes<acc_t>;
  const acc_t center_y =
      tap_center<acc_t>(ho, g.stride_h, g.pad_h, g.dilation_h, g.kernel_h);
  const acc_t center_x =
      tap_center<acc_t>(wo, g.stride_w, g.pad_w, g.dilation_w, g.kernel_w);
  const acc_t scale = static_cast<acc_t>(g.offset_scale);
  const acc_t height = static_cast<acc_t>(g.height);
  const acc_t width = static_cast<acc_t>(g.width);
  const Lanes<acc_t> zero = {};
  const acc_t* const pixel_shift = plan.pixel_shift();
  const acc_t* const tap_y = plan.tap_y();
  const acc_t* const tap_x = plan.tap_x();

  for (int64_t i = 0; i < count; i += lanes) {
    const auto first = load(offset + 2 * i);
    const auto second = load(offset + 2 * i + lanes);
    auto x = (center_x + load(pixel_shift + i)) + load(tap_x + i) +
             every_second<acc_t, 0>(first, second) * scale;
    auto y = center_y + load(tap_y + i) +
             every_second<acc_t, 1>(first, second) * scale;
    Samples<acc_t> samples;
    // False for NaN too.
    samples.is_inside = (y > -1) & (y < height) & (x > -1) & (x < width);
    y = samples.is_inside ? y : zero;
    x = samples.is_inside ? x : zero;
    samples.top = floor_of<acc_t>(y);
    samples.left = floor_of<acc_t>(x);
    samples.bilinear = {y - samples.top, x - samples.left};
    samples.has_top = samples.top >= 0;
    samples.has_bottom = samples.top < height - 1;
    samples.has_left = samples.left >= 0;
    samples.has_right = samples.left < width - 1;
    write(i, samples, load(mask + i));
  }
}

// Plan the points of `pixels` output pixels from one on, and of `groups`
// groups. offset and mask are those of the first pixel's first group; write as
// in place_samples.
template <typename acc_t, typename point_t, typename write_t>
inline void plan_pixels(
    const Geometry& g,
    int64_t pixel,
    int64_t pixels,
    int64_t groups,
    const point_t* offset,
    const point_t* mask,
    const Plan<acc_t>& plan,
    const write_t& write) {
  const int64_t count = groups * plan.points;
  const int64_t step = g.groups * plan.points;
  const acc_t* wide_offset = plan.offset();
  const acc_t* wide_mask = plan.mask();
  bool is_direct = false;
  if constexpr (sizeof(point_t) == sizeof(acc_t)) {
    // Nothing to widen, to sort, or to read beyond the end.
    is_direct = count == step && pixels * count % kLanes<acc_t> == 0;
    if (is_direct) {
      wide_offset = offset;
      wide_mask = g.softmax ? plan.mask() : mask;
    }
  }
  for (int64_t i = 0; i < pixels; ++i) {
    if (!is_direct) {
      widen(offset + 2 * i * step, 2 * count, plan.offset() + 2 * i * count);
    }
    if (!is_direct || g.softmax) {
      widen(mask + i * step, count, plan.mask() + i * count);
    }
  }
  if (g.softmax) {
    plan_softmax(plan, pixels * count);
  }
  place_samples(
      g,
      pixel / g.out_width % g.out_height,
      pixel % g.out_width,
      wide_offset,
      wide_mask,
      pixels * count,
      plan,
      write);
}

}  // namespace DCNV3_CAPABILITY
}  // namespace dcnv3
