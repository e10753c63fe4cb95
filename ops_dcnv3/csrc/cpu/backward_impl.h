// SPDX-License-Identifier: Apache-2.0
// Body of DCNv3's backward kernel on the CPU. Included, as vectors.h, after the
// instruction set is chosen.
#pragma once

#include "plan_impl.h"

namespace dcnv3 {
namespace DCNV3_CAPABILITY {

// Add the gradient of one group of an output pixel to that of its corners, and
// start its dot product with the features of each: products has a register for
// each point, with kLanes / 4 parts of the sum for each corner. sums follow the
// features at a distance in elements. known_whole is the number of channels
// where the compiler should know it, 0 elsewhere.
template <int known_whole, typename acc_t>
__attribute__((noinline)) void scatter(
    const Plan<acc_t>& plan,
    int64_t pixels,
    int64_t groups,
    const acc_t* grads,
    acc_t* features,
    int64_t distance,
    int64_t channels,
    acc_t* products) {
  constexpr int lanes = kLanes<acc_t>;
  const int64_t whole =
      known_whole > 0 ? known_whole : channels / lanes * lanes;
  const int64_t step = groups * channels;
  const acc_t* weights = plan.weights();
  const auto* pixel = plan.pixel();
  const auto* down = plan.down();
  const auto* to_right = plan.right();
  for (int64_t item = 0; item < pixels; ++item) {
    for (int64_t group = 0; group < groups; ++group) {
      acc_t* const image = features + group * channels;
      const auto* const end = pixel + plan.points;
      for (; pixel < end; ++pixel) {
        acc_t* upper = image + *pixel * step;
        acc_t* lower = upper + *down++;
        const int64_t right = *to_right++;
        acc_t* const corners[4] = {upper, upper + right, lower, lower + right};
        Lanes<acc_t> spread[4];
        spread_four(weights, spread);
        weights += 4;
        Lanes<acc_t> dots[4] = {};
        for (int64_t channel = 0; channel < whole; channel += lanes) {
          const auto grad = load(grads + channel);
#pragma GCC unroll 4
          for (int corner = 0; corner < 4; ++corner) {
            const acc_t* source = corners[corner] + channel;
            acc_t* target = corners[corner] + channel + distance;
            dots[corner] += grad * load(source);
            store<acc_t>(target, load(target) + spread[corner] * grad);
          }
        }
        if (known_whole == 0 && whole < channels) {
          const int64_t left = channels - whole;
          const auto grad = load_some<acc_t>(grads + whole, left);
          for (int corner = 0; corner < 4; ++corner) {
            const acc_t* source = corners[corner] + whole;
            acc_t* target = corners[corner] + whole + distance;
            dots[corner] += grad * load_some<acc_t>(source, left);
            const Lanes<acc_t> sum =
                load_some<acc_t>(target, left) + spread[corner] * grad;
            __builtin_memcpy(target, &sum, left * sizeof(acc_t));
          }
        }
        const auto top = sum_pairs<acc_t>(dots[0], dots[1]);
        const auto bottom = sum_pairs<acc_t>(dots[2], dots[3]);
        store<acc_t>(products, sum_pairs<acc_t>(top, bottom));
        products += lanes;
      }
      grads += channels;
    }
  }
}

// Turn the products of count points into the gradients of their masks, or
// logits, and offsets.
template <typename acc_t>
inline void plan_grads(
    const Geometry& g,
    const Plan<acc_t>& plan,
    int64_t count,
    const acc_t* products,
    acc_t* grad_offset,
    acc_t* grad_mask) {
  constexpr int lanes = kLanes<acc_t>;
  const acc_t scale = static_cast<acc_t>(g.offset_scale);
  for (int64_t i = 0; i < count; i += lanes) {
    // Of lanes points, a quarter at a time; then sorted by corner.
    Lanes<acc_t> parts[4];
    for (int part = 0; part < 4; ++part) {
      parts[part] =
          sum_rows<acc_t, lanes / 4>(products + (i + part * lanes / 4) * lanes);
    }
    const auto left = every_second<acc_t, 0>(parts[0], parts[1]);
    const auto right = every_second<acc_t, 1>(parts[0], parts[1]);
    const auto more_left = every_second<acc_t, 0>(parts[2], parts[3]);
    const auto more_right = every_second<acc_t, 1>(parts[2], parts[3]);
    using P = Plan<acc_t>;
    const Lanes<acc_t> zero = {};
    const auto inside = load_raw<typename P::integer, lanes>(plan.inside() + i);
    const Integers<acc_t> has_top = (inside & P::kTop) != 0;
    const Integers<acc_t> has_bottom = (inside & P::kBottom) != 0;
    const Integers<acc_t> has_left = (inside & P::kLeft) != 0;
    const Integers<acc_t> has_right = (inside & P::kRight) != 0;
    const Lanes<acc_t> dots[4] = {
        (has_top & has_left) ? every_second<acc_t, 0>(left, more_left) : zero,
        (has_top & has_right) ? every_second<acc_t, 0>(right, more_right)
                              : zero,
        (has_bottom & has_left) ? every_second<acc_t, 1>(left, more_left)
                                : zero,
        (has_bottom & has_right) ? every_second<acc_t, 1>(right, more_right)
                                 : zero};
    const Bilinear<Lanes<acc_t>> sample{
        load(plan.ly() + i),
        load(plan.lx() + i)};
    // The softmax may give a point outside a weight of NaN.
    const Lanes<acc_t> factor =
        inside != 0 ? load(plan.mask() + i) * scale : zero;
    const Lanes<acc_t> grad_x = factor * sample.grad_x(dots);
    const Lanes<acc_t> grad_y = factor * sample.grad_y(dots);
    store<acc_t>(grad_offset + 2 * i, zip<acc_t, 1, 0>(grad_x, grad_y));
    store<acc_t>(grad_offset + 2 * i + lanes, zip<acc_t, 1, 1>(grad_x, grad_y));
    store<acc_t>(grad_mask + i, sample.value(dots));
  }
  if (!g.softmax) {
    return;
  }
  // The gradient's distance from its own weighted mean, weighted.
  for (int64_t first = 0; first < count; first += plan.points) {
    acc_t mean = 0;
    for (int64_t i = first; i < first + plan.points; ++i) {
      mean += plan.mask()[i] * grad_mask[i];
    }
    for (int64_t i = first; i < first + plan.points; ++i) {
      grad_mask[i] = plan.mask()[i] * (grad_mask[i] - mean);
    }
  }
}

// Copy a part of every pixel's numbers, and convert them.
template <typename source_t, typename target_t>
inline void copy_channels(
    const source_t* source,
    int64_t source_step,
    target_t* target,
    int64_t target_step,
    int64_t pixels,
    int64_t channels) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    for (int64_t channel = 0; channel < channels; ++channel) {
      target[pixel * target_step + channel] =
          static_cast<target_t>(source[pixel * source_step + channel]);
    }
  }
}

template <typename acc_t>
inline void fill_zeros(acc_t* target, int64_t count) {
  __builtin_memset(target, 0, count * sizeof(acc_t));
}

// Groups that the backward pass works on at a time.
constexpr int64_t kGroups = 4;

template <typename scalar_t, typename point_t>
void backward(
    const Geometry& g,
    const BackwardPointers<scalar_t, point_t>& p,
    int64_t begin,
    int64_t end) {
  using acc_t = typename Accumulator<scalar_t>::type;
  constexpr int lanes = kLanes<acc_t>;
  const int64_t channels = g.group_channels;
  const int64_t pixels = g.height * g.width;
  const Plan<acc_t> plan(g, end - begin < kGroups ? end - begin : kGroups);
  const int64_t most_channels = plan.groups * channels;
  // Copies of a few groups, widened: what neighbouring points read and sum is
  // close together, and half precision is rounded once, at the end. Each has
  // one more pixel, for what is outside: of zeros, and of sums nobody reads.
  const int64_t size = (pixels + 1) * most_channels;
  Scratch<acc_t> copies(2 * size);
  Scratch<acc_t> grads(plan.pixels * most_channels);
  Scratch<acc_t> products(plan.size * lanes);
  Scratch<acc_t> grad_offset(2 * plan.size);
  Scratch<acc_t> grad_mask(plan.size);
  copies.zero();
  products.zero();
  acc_t* const features = copies.data();
  acc_t* const sums = features + size;

  const auto scatter_plan = channels == lanes       ? &scatter<lanes, acc_t>
                            : channels == 2 * lanes ? &scatter<2 * lanes, acc_t>
                                                    : &scatter<0, acc_t>;
  for (int64_t item = begin, groups; item < end; item += groups) {
    const int64_t n = item / g.groups;
    const int64_t group = item % g.groups;
    groups = g.groups - group;
    groups = groups < end - item ? groups : end - item;
    groups = groups < plan.groups ? groups : plan.groups;
    plan_taps(g, groups, plan);
    const int64_t start = n * pixels * g.channels() + group * channels;
    const int64_t own_channels = groups * channels;
    const int64_t own_points = groups * plan.points;
    copy_channels(
        p.input + start,
        g.channels(),
        features,
        own_channels,
        pixels,
        own_channels);
    fill_zeros(features + pixels * own_channels, own_channels);
    fill_zeros(sums, (pixels + 1) * own_channels);
    const int64_t out_start = n * g.out_height * g.out_width;
    const int64_t out_end = out_start + g.out_height * g.out_width;
    for (int64_t pixel = out_start, count; pixel < out_end; pixel += count) {
      count = g.out_width - pixel % g.out_width;
      count = count < plan.pixels ? count : plan.pixels;
      const int64_t q = pixel * g.groups + group;
      copy_channels(
          p.grad_output + q * channels,
          g.channels(),
          grads.data(),
          own_channels,
          count,
          own_channels);
      plan_pixels<true>(
          g,
          pixel,
          count,
          groups,
          p.offset + q * plan.points * 2,
          p.mask + q * plan.points,
          own_channels,
          pixels,
          plan);
      scatter_plan(
          plan,
          count,
          groups,
          grads.data(),
          features,
          size,
          channels,
          products.data());
      plan_grads(
          g,
          plan,
          count * own_points,
          products.data(),
          grad_offset.data(),
          grad_mask.data());
      copy_channels(
          grad_offset.data(),
          2 * own_points,
          p.grad_offset + q * plan.points * 2,
          2 * g.groups * plan.points,
          count,
          2 * own_points);
      copy_channels(
          grad_mask.data(),
          own_points,
          p.grad_mask + q * plan.points,
          g.groups * plan.points,
          count,
          own_points);
    }
    copy_channels(
        sums,
        own_channels,
        p.grad_input + start,
        g.channels(),
        pixels,
        own_channels);
  }
}

#define DCNV3_INSTANTIATE(scalar_t, point_t)      \
  template void backward(                         \
      const Geometry&,                            \
      const BackwardPointers<scalar_t, point_t>&, \
      int64_t,                                    \
      int64_t);
DCNV3_FOR_EACH_DTYPES(DCNV3_INSTANTIATE)
#undef DCNV3_INSTANTIATE

}  // namespace DCNV3_CAPABILITY
}  // namespace dcnv3
