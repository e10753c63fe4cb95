// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels. Includes nothing of PyTorch but its half-precision types,
// so that the tests can run this very code on the CPU.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../sampling.h"

namespace dcnv3 {

constexpr int kBlockSize = 256;

template <typename scalar_t>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

// kVec channels that move in one load or store.
template <typename scalar_t, int kVec>
struct alignas(sizeof(scalar_t) * kVec) ChannelVector {
  scalar_t lanes[kVec];
};

// index / size and index % size. 64-bit division takes several times as long as
// 32-bit on a GPU and is rarely needed.
struct Quotient {
  int64_t quotient;
  int64_t remainder;
};
__device__ inline Quotient divide(int64_t index, int64_t size) {
  if (((index | size) >> 32) == 0) {
    const uint32_t i = static_cast<uint32_t>(index);
    const uint32_t s = static_cast<uint32_t>(size);
    const uint32_t quotient = i / s;
    return {quotient, i - quotient * s};
  }
  return {index / size, index % size};
}

// The output pixel and group that a thread works on, from q = pixel * G +
// group.
struct Site {
  int64_t n;
  int64_t ho;
  int64_t wo;
  int64_t group;

  __device__ Site(const Geometry& g, int64_t q) {
    const Quotient by_group = divide(q, g.groups);
    const Quotient by_width = divide(by_group.quotient, g.out_width);
    const Quotient by_height = divide(by_width.quotient, g.out_height);
    group = by_group.remainder;
    wo = by_width.remainder;
    ho = by_height.remainder;
    n = by_height.quotient;
  }
};

template <typename scalar_t, typename point_t>
struct ForwardPointers {
  const scalar_t* __restrict__ input;
  const point_t* __restrict__ offset;
  const point_t* __restrict__ mask;
  scalar_t* __restrict__ output;
};

// One thread sums kVec channels of one group of one output pixel. A block
// covers kBlockSize consecutive (pixel, group, channel vector) triples,
// channels fastest: the threads of a group read the same offsets (broadcast)
// and neighbouring channels (coalesced). Each output is written once, by its
// own thread.
template <typename scalar_t, typename point_t, int kVec>
__global__ void __launch_bounds__(kBlockSize)
    forward_kernel(Geometry g, ForwardPointers<scalar_t, point_t> p) {
  using acc_t = typename Accumulator<scalar_t>::type;
  using Channels = ChannelVector<scalar_t, kVec>;
  const int64_t vectors = g.group_channels / kVec;
  const int64_t index =
      static_cast<int64_t>(blockIdx.x) * kBlockSize + threadIdx.x;
  const Quotient by_vector = divide(index, vectors);
  const int64_t q = by_vector.quotient;
  if (q >= g.out_pixels() * g.groups) {
    return;
  }
  const Site site(g, q);
  const int64_t channel = by_vector.remainder * kVec;
  const int64_t column_step = g.channels();
  const int64_t row_step = g.width * column_step;
  const scalar_t* input = p.input + site.n * g.height * row_step +
                          site.group * g.group_channels + channel;
  const point_t* offset = p.offset + q * g.points() * 2;
  const point_t* mask = p.mask + q * g.points();
  const acc_t scale = static_cast<acc_t>(g.offset_scale);

  acc_t sums[kVec] = {};
  int32_t point = 0;
  for (int32_t tap_w = 0; tap_w < g.kernel_w; ++tap_w) {
    const acc_t x = tap_position<acc_t>(
        site.wo,
        g.stride_w,
        g.pad_w,
        g.dilation_w,
        g.kernel_w,
        tap_w,
        scale);
    for (int32_t tap_h = 0; tap_h < g.kernel_h; ++tap_h) {
      if (g.is_removed(tap_h, tap_w)) {
        continue;
      }
      const acc_t y = tap_position<acc_t>(
          site.ho,
          g.stride_h,
          g.pad_h,
          g.dilation_h,
          g.kernel_h,
          tap_h,
          scale);
      const acc_t dx = static_cast<acc_t>(offset[2 * point]);
      const acc_t dy = static_cast<acc_t>(offset[2 * point + 1]);
      const acc_t weight = static_cast<acc_t>(mask[point]);
      ++point;
      Sample<acc_t> sample;
      if (!locate<acc_t>(
              y + dy * scale,
              x + dx * scale,
              g.height,
              g.width,
              sample)) {
        continue;
      }
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        const int64_t row = sample.row(corner);
        const int64_t column = sample.column(corner);
        if (row < 0 || row >= g.height || column < 0 || column >= g.width) {
          continue;
        }
        const acc_t corner_weight = weight * sample.weight(corner);
        const Channels values = *reinterpret_cast<const Channels*>(
            input + row * row_step + column * column_step);
#pragma unroll
        for (int lane = 0; lane < kVec; ++lane) {
          sums[lane] += corner_weight * static_cast<acc_t>(values.lanes[lane]);
        }
      }
    }
  }
  Channels result;
#pragma unroll
  for (int lane = 0; lane < kVec; ++lane) {
    result.lanes[lane] = static_cast<scalar_t>(sums[lane]);
  }
  *reinterpret_cast<Channels*>(p.output + q * g.group_channels + channel) =
      result;
}

// grad_input is of the accumulator's type and zero at the start.
template <typename scalar_t, typename point_t>
struct BackwardPointers {
  using acc_t = typename Accumulator<scalar_t>::type;
  const scalar_t* __restrict__ input;
  const point_t* __restrict__ offset;
  const point_t* __restrict__ mask;
  const scalar_t* __restrict__ grad_output;
  acc_t* __restrict__ grad_input;
  point_t* __restrict__ grad_offset;
  point_t* __restrict__ grad_mask;
};

// Sum a value over teams of `team` neighbouring threads (a power of two, at
// most 32). Every thread of the warp must call it.
template <typename acc_t>
__device__ inline acc_t team_sum(acc_t value, int team) {
  for (int distance = team / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

// A team of `team` threads (a power of two, at most 32, so within one warp)
// works on one group of one output pixel; thread t takes channels t, t + team,
// ... Reads and atomic additions of a team are to neighbouring channels.
// grad_input is summed with atomics, as samples of different pixels overlap;
// grad_offset and grad_mask are summed over the team by shuffles and written
// once, by its first thread.
template <typename scalar_t, typename point_t>
__global__ void __launch_bounds__(kBlockSize) backward_kernel(
    Geometry g,
    BackwardPointers<scalar_t, point_t> p,
    int team) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kBlockSize / team);
  const int64_t sites = g.out_pixels() * g.groups;
  int64_t q = first + threadIdx.x / team;
  // Threads beyond the end repeat the last site without writing: shuffles need
  // whole warps.
  const bool active = q < sites;
  q = active ? q : sites - 1;
  const int first_channel = threadIdx.x % team;
  const Site site(g, q);
  const int64_t column_step = g.channels();
  const int64_t row_step = g.width * column_step;
  const int64_t image_start =
      site.n * g.height * row_step + site.group * g.group_channels;
  const scalar_t* input = p.input + image_start;
  acc_t* grad_input = p.grad_input + image_start;
  const scalar_t* grad_output = p.grad_output + q * g.group_channels;
  const int64_t first_point = q * g.points();
  const acc_t scale = static_cast<acc_t>(g.offset_scale);

  int64_t point = first_point;
  for (int32_t tap_w = 0; tap_w < g.kernel_w; ++tap_w) {
    const acc_t x = tap_position<acc_t>(
        site.wo,
        g.stride_w,
        g.pad_w,
        g.dilation_w,
        g.kernel_w,
        tap_w,
        scale);
    for (int32_t tap_h = 0; tap_h < g.kernel_h; ++tap_h) {
      if (g.is_removed(tap_h, tap_w)) {
        continue;
      }
      const acc_t y = tap_position<acc_t>(
          site.ho,
          g.stride_h,
          g.pad_h,
          g.dilation_h,
          g.kernel_h,
          tap_h,
          scale);
      const acc_t dx = static_cast<acc_t>(p.offset[2 * point]);
      const acc_t dy = static_cast<acc_t>(p.offset[2 * point + 1]);
      Sample<acc_t> sample = {};
      const bool inside = locate<acc_t>(
          y + dy * scale,
          x + dx * scale,
          g.height,
          g.width,
          sample);
      // A mask outside the image may be NaN and must not reach the gradients.
      const acc_t weight = inside ? static_cast<acc_t>(p.mask[point]) : 0;
      acc_t dots[4] = {0, 0, 0, 0};
      if (inside && active) {
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          const int64_t row = sample.row(corner);
          const int64_t column = sample.column(corner);
          if (row < 0 || row >= g.height || column < 0 || column >= g.width) {
            continue;
          }
          const acc_t corner_weight = weight * sample.weight(corner);
          const int64_t position = row * row_step + column * column_step;
          for (int64_t channel = first_channel; channel < g.group_channels;
               channel += team) {
            const acc_t grad = static_cast<acc_t>(grad_output[channel]);
            dots[corner] +=
                grad * static_cast<acc_t>(input[position + channel]);
            atomicAdd(grad_input + position + channel, corner_weight * grad);
          }
        }
      }
      const acc_t value = team_sum(sample.value(dots), team);
      const acc_t grad_x = team_sum(sample.grad_x(dots), team);
      const acc_t grad_y = team_sum(sample.grad_y(dots), team);
      if (active && first_channel == 0) {
        p.grad_mask[point] = static_cast<point_t>(value);
        p.grad_offset[2 * point] =
            static_cast<point_t>(weight * scale * grad_x);
        p.grad_offset[2 * point + 1] =
            static_cast<point_t>(weight * scale * grad_y);
      }
      ++point;
    }
  }
}

}  // namespace dcnv3
