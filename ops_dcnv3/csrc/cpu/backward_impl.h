// SPDX-License-Identifier: Apache-2.0
// Body of DCNv3's backward kernel on the CPU. Included, as vectors.h, after the
// instruction set is chosen.
#pragma once

#include "plan_impl.h"

namespace dcnv3 {
namespace DCNV3_CAPABILITY {

// What the backward pass knows of each point. A corner outside the image weighs
// nothing, and points to a pixel of zeros.
template <typename acc_t>
class ScatterPlan : public Plan<acc_t> {
 private:
  Scratch<acc_t> numbers_;
  Scratch<int64_t> positions_;

 public:
  using Plan<acc_t>::size;

  ScatterPlan(const Geometry& g, int64_t most_groups)
      : Plan<acc_t>(g, most_groups), numbers_(6 * size), positions_(4 * size) {
    numbers_.zero();
  }

  acc_t* ly() const { return numbers_.data(); }
  acc_t* lx() const { return numbers_.data() + size; }
  // Weight of a corner of each point, mask included.
  acc_t* weight(int corner) const {
    return numbers_.data() + (2 + corner) * size;
  }
  // Start of a corner's pixel in the image, in elements.
  int64_t* position(int corner) const {
    return positions_.data() + corner * size;
  }
};

// Write what the samples from index i on weigh and where they are. column_step
// is the distance between input pixels of a row, and nowhere the position of a
// pixel of zeros, both in elements.
template <typename acc_t>
inline void write_samples(
    const Geometry& g,
    const ScatterPlan<acc_t>& plan,
    int64_t i,
    const Samples<acc_t>& samples,
    Lanes<acc_t> mask,
    int64_t column_step,
    int64_t nowhere) {
  using Positions = Vector<int64_t, kLanes<acc_t>>;
  const Lanes<acc_t> zero = {};
  const int64_t row_step = g.width * column_step;
  if (!g.softmax) {
    // A mask outside the image may be NaN, and must not reach the gradients.
    mask = samples.is_inside ? mask : zero;
  }
  store(plan.mask() + i, mask);
  store(plan.ly() + i, samples.bilinear.ly);
  store(plan.lx() + i, samples.bilinear.lx);
  const auto top = __builtin_convertvector(samples.top, Integers<acc_t>);
  const auto left = __builtin_convertvector(samples.left, Integers<acc_t>);
  const Positions start =
      __builtin_convertvector(top, Positions) * row_step +
      __builtin_convertvector(left, Positions) * column_step;
  for (int corner = 0; corner < 4; ++corner) {
    const Integers<acc_t> is_in =
        samples.is_inside &
        (corner >> 1 ? samples.has_bottom : samples.has_top) &
        (corner & 1 ? samples.has_right : samples.has_left);
    store<acc_t>(
        plan.weight(corner) + i,
        is_in ? mask * samples.bilinear.weight(corner) : zero);
    const int64_t step =
        (corner >> 1 ? row_step : 0) + (corner & 1 ? column_step : 0);
    // By bits, as compilers choose between wide vectors lane by lane.
    const Positions position = (__builtin_convertvector(is_in, Positions) &
                                (start + (step - nowhere))) +
                               nowhere;
    __builtin_memcpy(plan.position(corner) + i, &position, sizeof(position));
  }
}

// The distance from `from` to `to` in elements. They belong to different
// tensors, whose distance only integers may have.
template <typename T>
inline int64_t distance(const T* from, const T* to) {
  return (static_cast<int64_t>(reinterpret_cast<uintptr_t>(to)) -
          static_cast<int64_t>(reinterpret_cast<uintptr_t>(from))) /
         static_cast<int64_t>(sizeof(T));
}

// What is `position` elements from `base`, maybe in another tensor.
template <typename T>
inline T* at(T* base, int64_t position) {
  return reinterpret_cast<T*>(
      reinterpret_cast<uintptr_t>(base) + position * sizeof(T));
}

// Add the gradient of one group of an output pixel to that of its corners, and
// start its dot product with the features of each: products has a register for
// each point, with kLanes / 4 parts of the sum for each corner. known_whole is
// the number of channels where the compiler should know it, 0 elsewhere.
template <int known_whole, typename acc_t>
inline void scatter(
    const ScatterPlan<acc_t>& plan,
    int64_t first,
    const acc_t* grads,
    const acc_t* input,
    int64_t channels,
    int64_t nowhere,
    acc_t* sink,
    acc_t* sums,
    acc_t* products) {
  constexpr int lanes = kLanes<acc_t>;
  const int64_t whole =
      known_whole > 0 ? known_whole : channels / lanes * lanes;
  const int64_t end = first + plan.points;
  // Of their own, as far as the compiler knows a store might change the plan.
  const acc_t* const weights[4] = {
      plan.weight(0),
      plan.weight(1),
      plan.weight(2),
      plan.weight(3)};
  const int64_t* const positions[4] = {
      plan.position(0),
      plan.position(1),
      plan.position(2),
      plan.position(3)};
  for (int64_t i = first; i < end; ++i) {
    const acc_t* sources[4];
    acc_t* targets[4];
    Lanes<acc_t> dots[4] = {};
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t position = positions[corner][i];
      sources[corner] = at(input, position);
      targets[corner] = position == nowhere ? sink : sums + position;
    }
    for (int64_t channel = 0; channel < whole; channel += lanes) {
      const auto grad = load(grads + channel);
      for (int corner = 0; corner < 4; ++corner) {
        acc_t* target = targets[corner] + channel;
        dots[corner] += grad * load(sources[corner] + channel);
        store<acc_t>(target, load(target) + weights[corner][i] * grad);
      }
    }
    if (known_whole == 0 && whole < channels) {
      const int64_t left = channels - whole;
      const auto grad = load_some<acc_t>(grads + whole, left);
      for (int corner = 0; corner < 4; ++corner) {
        acc_t* target = targets[corner] + whole;
        dots[corner] += grad * load_some<acc_t>(sources[corner] + whole, left);
        const Lanes<acc_t> sum =
            load_some<acc_t>(target, left) + weights[corner][i] * grad;
        __builtin_memcpy(target, &sum, left * sizeof(acc_t));
      }
    }
    const auto upper = sum_pairs<acc_t>(dots[0], dots[1]);
    const auto lower = sum_pairs<acc_t>(dots[2], dots[3]);
    store<acc_t>(products + i * lanes, sum_pairs<acc_t>(upper, lower));
  }
}

// Turn the products of count points into the gradients of their masks, or
// logits, and offsets.
template <typename acc_t>
inline void plan_grads(
    const Geometry& g,
    const ScatterPlan<acc_t>& plan,
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
    const Lanes<acc_t> dots[4] = {
        every_second<acc_t, 0>(left, more_left),
        every_second<acc_t, 0>(right, more_right),
        every_second<acc_t, 1>(left, more_left),
        every_second<acc_t, 1>(right, more_right)};
    const Bilinear<Lanes<acc_t>> sample{
        load(plan.ly() + i),
        load(plan.lx() + i)};
    const auto factor = load(plan.mask() + i) * scale;
    const Lanes<acc_t> grad_x = factor * sample.grad_x(dots);
    const Lanes<acc_t> grad_y = factor * sample.grad_y(dots);
    for (int j = 0; j < lanes; ++j) {
      grad_offset[2 * (i + j)] = grad_x[j];
      grad_offset[2 * (i + j) + 1] = grad_y[j];
    }
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

// Groups that the backward pass works on at a time.
constexpr int64_t kGroups = 4;

template <typename scalar_t, typename point_t>
void backward(
    const Geometry& g,
    const BackwardPointers<scalar_t, point_t>& p,
    int64_t begin,
    int64_t end) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int64_t channels = g.group_channels;
  const int64_t pixels = g.height * g.width;
  const ScatterPlan<acc_t> plan(
      g,
      end - begin < kGroups ? end - begin : kGroups);
  const int64_t most_channels = plan.groups * channels;
  // Copies of a few groups, widened: what neighbouring points read and sum is
  // close together, and half precision is rounded once, at the end.
  Scratch<acc_t> features(pixels * most_channels);
  Scratch<acc_t> sums(pixels * most_channels);
  Scratch<acc_t> grads(plan.pixels * most_channels);
  Scratch<acc_t> products(plan.size * kLanes<acc_t>);
  Scratch<acc_t> grad_offset(2 * plan.size);
  Scratch<acc_t> grad_mask(plan.size);
  Scratch<acc_t> zeros(most_channels);
  Scratch<acc_t> sink(channels);
  products.zero();
  zeros.zero();
  sink.zero();

  constexpr int lanes = kLanes<acc_t>;
  const auto scatter_group = channels == lanes ? &scatter<lanes, acc_t>
                             : channels == 2 * lanes
                                 ? &scatter<2 * lanes, acc_t>
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
        features.data(),
        own_channels,
        pixels,
        own_channels);
    sums.zero();
    const int64_t nowhere = distance<acc_t>(features.data(), zeros.data());
    const auto write =
        [&](int64_t i, const Samples<acc_t>& samples, auto mask) {
          write_samples(g, plan, i, samples, mask, own_channels, nowhere);
        };
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
      plan_pixels(
          g,
          pixel,
          count,
          groups,
          p.offset + q * plan.points * 2,
          p.mask + q * plan.points,
          plan,
          write);
      int64_t first = 0;
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t channel = 0; channel < own_channels; channel += channels) {
          scatter_group(
              plan,
              first,
              grads.data() + i * own_channels + channel,
              features.data() + channel,
              channels,
              nowhere,
              sink.data(),
              sums.data() + channel,
              products.data());
          first += plan.points;
        }
      }
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
        sums.data(),
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
