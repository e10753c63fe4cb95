// SPDX-License-Identifier: Apache-2.0
// What the kernels of DCNv3 on the CPU have in common. Included, as vectors.h,
// after the instruction set is chosen.
//
// Both work in two steps. A Plan holds, for all points of some groups of a few
// output pixels, where their corners are and what they weigh: arithmetic that
// is the same for every point, done for a register of points at a time. Then
// the plan is applied to the channels of each group, a register at a time,
// without a branch. A point outside the image has a pixel of zeros for all
// corners. One that has only one row of corners inside uses that twice, each
// time with half of the weight, and so for columns: nothing is read outside,
// and nothing is added that a point does not touch, which might be infinite.
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

// Where the points of some output pixels sample an image: of neighbouring
// pixels of a row, and of the same groups of each.
template <typename acc_t>
class Plan {
 public:
  using integer = typename Accumulator<acc_t>::integer;

  const int64_t points;  // of a group of a pixel
  const int64_t groups;  // at most, of a pixel
  const int64_t pixels;  // at most
  const int64_t size;    // of each array: a whole number of registers

 private:
  Scratch<acc_t> numbers_;
  Scratch<integer> integers_;

 public:
  // A plan for at most the groups given.
  Plan(const Geometry& g, int64_t most_groups)
      : points(g.points()),
        groups(clamp(kPoints / points, most_groups)),
        pixels(clamp(kPoints / (points * groups), g.out_width)),
        size((pixels * groups * points / kLanes<acc_t> + 1) * kLanes<acc_t>),
        numbers_(13 * size + kLanes<acc_t>),
        integers_(4 * size) {
    numbers_.zero();
  }

  // Of each point, the weights of its corners, mask included. Corner k = 0..3
  // is in row k / 2 and column k % 2 of them.
  acc_t* weights() const { return numbers_.data(); }
  // Number of the first corner's pixel in the image.
  integer* pixel() const { return integers_.data(); }
  // Distances in elements from one row of corners to the other, and from one
  // column to the other.
  integer* down() const { return integers_.data() + size; }
  integer* right() const { return integers_.data() + 2 * size; }

  // What only the backward pass reads: weight of each point before the bilinear
  // ones, weights of the lower and right corners, and which rows and columns of
  // corners are in the image, as a sum of numbers: 0 for a point outside.
  acc_t* mask() const { return numbers_.data() + 4 * size; }
  acc_t* ly() const { return numbers_.data() + 5 * size; }
  acc_t* lx() const { return numbers_.data() + 6 * size; }
  integer* inside() const { return integers_.data() + 3 * size; }
  static constexpr integer kTop = 1, kBottom = 2, kLeft = 4, kRight = 8;

  // Distance of each point's pixel from the first one, in input pixels.
  acc_t* pixel_shift() const { return numbers_.data() + 7 * size; }
  // Distances of each point's tap from the centre of the kernel.
  acc_t* tap_y() const { return numbers_.data() + 8 * size; }
  acc_t* tap_x() const { return numbers_.data() + 9 * size; }
  // Pairs (x, y).
  acc_t* offset() const { return numbers_.data() + 10 * size; }
  // What normalises a softmax; a register more than the others.
  acc_t* factor() const { return numbers_.data() + 12 * size; }

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

// So far from zero, exp() and quotients of sums of it are normal numbers.
template <typename acc_t>
constexpr acc_t kSafeLogit = 40;

// Whether all of count logits, in whole registers, are at a safe distance from
// zero; false for NaN.
template <typename acc_t>
inline bool are_safe(const acc_t* logits, int64_t count) {
  constexpr int lanes = kLanes<acc_t>;
  auto is_safe = Integers<acc_t>{} == 0;
  for (int64_t i = 0; i < count; i += lanes) {
    const auto part = load(logits + i);
    is_safe &= (part < kSafeLogit<acc_t>)&(part > -kSafeLogit<acc_t>);
  }
  for (int lane = 0; lane < lanes; ++lane) {
    if (!is_safe[lane]) {
      return false;
    }
  }
  return true;
}

// Subtract the largest logit from those of each group that has one that is not
// safe. Each group decides for itself: which others are planned with it depends
// on the number of threads, and the result must not.
template <typename acc_t>
inline void shift_large_logits(const Plan<acc_t>& plan, int64_t count) {
  for (int64_t first = 0; first < count; first += plan.points) {
    acc_t* const group = plan.mask() + first;
    acc_t largest = -static_cast<acc_t>(__builtin_inf());
    bool is_safe = true;
    for (int64_t i = 0; i < plan.points; ++i) {
      const acc_t logit = group[i];
      is_safe &= logit < kSafeLogit<acc_t> && logit > -kSafeLogit<acc_t>;
      largest = logit > largest ? logit : largest;
    }
    if (!is_safe) {
      for (int64_t i = 0; i < plan.points; ++i) {
        group[i] -= largest;
      }
    }
  }
}

// Turn the logits of each group into weights.
template <typename acc_t>
inline void plan_softmax(const Plan<acc_t>& plan, int64_t count) {
  constexpr int lanes = kLanes<acc_t>;
  acc_t* const mask = plan.mask();
  for (int64_t i = count; i % lanes != 0; ++i) {
    mask[i] = 0;  // belongs to nobody, and must not grow from call to call
  }
  if (!are_safe(mask, count)) {
    shift_large_logits(plan, count);
  }
  for (int64_t i = 0; i < count; i += lanes) {
    store<acc_t>(mask + i, exp_of(load(mask + i)));
  }
  // A register for each group, of which the next one overwrites the rest.
  acc_t* const factor = plan.factor();
  for (int64_t first = 0; first < count; first += plan.points) {
    acc_t sum = 0;
    for (int64_t i = first; i < first + plan.points; ++i) {
      sum += mask[i];
    }
    const Lanes<acc_t> inverse = Lanes<acc_t>{} + 1 / sum;
    for (int64_t i = 0; i < plan.points; i += lanes) {
      store<acc_t>(factor + first + i, inverse);
    }
  }
  for (int64_t i = 0; i < count; i += lanes) {
    store<acc_t>(mask + i, load(mask + i) * load(factor + i));
  }
}

// Plan count points of output pixels from (ho, wo) on, with their offsets and
// weights. channels is the distance between the pixels of the image, and
// nowhere the number of the pixel of zeros.
template <bool for_backward, typename acc_t>
inline void plan_samples(
    const Geometry& g,
    int64_t ho,
    int64_t wo,
    const acc_t* offset,
    const acc_t* mask,
    int64_t count,
    int64_t channels,
    int64_t nowhere,
    const Plan<acc_t>& plan) {
  using integer = typename Accumulator<acc_t>::integer;
  using Whole = Integers<acc_t>;
  constexpr int lanes = kLanes<acc_t>;
  const acc_t center_y =
      tap_center<acc_t>(ho, g.stride_h, g.pad_h, g.dilation_h, g.kernel_h);
  const acc_t center_x =
      tap_center<acc_t>(wo, g.stride_w, g.pad_w, g.dilation_w, g.kernel_w);
  const acc_t scale = static_cast<acc_t>(g.offset_scale);
  const acc_t half = static_cast<acc_t>(0.5);
  const acc_t height = static_cast<acc_t>(g.height);
  const acc_t width = static_cast<acc_t>(g.width);
  const Lanes<acc_t> zero = {};
  const Whole no_pixel = Whole{} + static_cast<integer>(nowhere);
  const auto image_width = static_cast<integer>(g.width);
  const auto row_step = static_cast<integer>(g.width * channels);
  const auto column_step = static_cast<integer>(channels);
  // The compiler can not know that no store changes them.
  const acc_t* const pixel_shift = plan.pixel_shift();
  const acc_t* const tap_y = plan.tap_y();
  const acc_t* const tap_x = plan.tap_x();
  acc_t* const weights = plan.weights();
  integer* const integers[3] = {plan.pixel(), plan.down(), plan.right()};

  for (int64_t i = 0; i < count; i += lanes) {
    const auto first = load(offset + 2 * i);
    const auto second = load(offset + 2 * i + lanes);
    auto x = (center_x + load(pixel_shift + i)) + load(tap_x + i) +
             every_second<acc_t, 0>(first, second) * scale;
    auto y = center_y + load(tap_y + i) +
             every_second<acc_t, 1>(first, second) * scale;
    // False for NaN too.
    const Whole is_inside = (y > -1) & (y < height) & (x > -1) & (x < width);
    y = is_inside ? y : zero;
    x = is_inside ? x : zero;
    // Numbers, so that the comparisons work for images of any size.
    const auto top = floor_of<acc_t>(y);
    const auto left = floor_of<acc_t>(x);
    const Whole has_top = top >= 0;
    const Whole has_bottom = top < height - 1;
    const Whole has_left = left >= 0;
    const Whole has_right = left < width - 1;
    const Whole has_rows = has_top & has_bottom;
    const Whole has_columns = has_left & has_right;

    const auto ly = y - top;
    const auto lx = x - left;
    const auto hy = 1 - ly;
    const auto hx = 1 - lx;
    const auto one_row = half * (has_top ? hy : ly);
    const auto one_column = half * (has_left ? hx : lx);
    // A mask outside the image may be NaN.
    const auto given = load(mask + i);
    const auto weight = is_inside ? given : zero;
    const auto upper = weight * (has_rows ? hy : one_row);
    const auto lower = weight * (has_rows ? ly : one_row);
    const auto lefter = has_columns ? hx : one_column;
    const auto righter = has_columns ? lx : one_column;
    store_in_turn<acc_t>(
        weights + 4 * i,
        upper * lefter,
        upper * righter,
        lower * lefter,
        lower * righter);

    const auto row =
        __builtin_convertvector(has_top ? top : zero, Integers<acc_t>);
    const auto column =
        __builtin_convertvector(has_left ? left : zero, Integers<acc_t>);
    const Whole pixel = row * image_width + column;
    store_integers<acc_t>(integers[0] + i, is_inside ? pixel : no_pixel);
    store_integers<acc_t>(integers[1] + i, is_inside & has_rows & row_step);
    store_integers<acc_t>(
        integers[2] + i,
        is_inside & has_columns & column_step);

    if constexpr (for_backward) {
      using P = Plan<acc_t>;
      // Of logits, what is outside has its share in the softmax.
      store<acc_t>(plan.mask() + i, g.softmax ? given : weight);
      store<acc_t>(plan.ly() + i, ly);
      store<acc_t>(plan.lx() + i, lx);
      store_integers<acc_t>(
          plan.inside() + i,
          is_inside & ((has_top & P::kTop) | (has_bottom & P::kBottom) |
                       (has_left & P::kLeft) | (has_right & P::kRight)));
    }
  }
}

// Plan the points of `pixels` output pixels from one on, and of `groups`
// groups. offset and mask are those of the first pixel's first group; the rest
// as for plan_samples.
template <bool for_backward, typename acc_t, typename point_t>
inline void plan_pixels(
    const Geometry& g,
    int64_t pixel,
    int64_t pixels,
    int64_t groups,
    const point_t* offset,
    const point_t* mask,
    int64_t channels,
    int64_t nowhere,
    const Plan<acc_t>& plan) {
  const int64_t count = groups * plan.points;
  const int64_t step = g.groups * plan.points;
  const acc_t* wide_offset = plan.offset();
  const acc_t* wide_mask = plan.mask();
  bool is_direct = false;
  if constexpr (sizeof(point_t) == sizeof(acc_t)) {
    // Nothing to widen, to sort, or to read beyond the end.
    is_direct =
        (count == step || pixels == 1) && pixels * count % kLanes<acc_t> == 0;
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
  plan_samples<for_backward>(
      g,
      pixel / g.out_width % g.out_height,
      pixel % g.out_width,
      wide_offset,
      wide_mask,
      pixels * count,
      channels,
      nowhere,
      plan);
}

}  // namespace DCNV3_CAPABILITY
}  // namespace dcnv3
