// SPDX-License-Identifier: Apache-2.0
// Where a point samples and with which weights, for host and device. The CPU
// plans many points at once, cpu/plan_impl.h, from the same functions but for
// the split of a position into a pixel and weights, which is in vectors there.
// acc_t is float, or double for double tensors.
#pragma once

#include "geometry.h"

namespace dcnv3 {

// Position of the kernel's centre, in input pixels along one axis.
template <typename acc_t>
DCNV3_HOST_DEVICE acc_t tap_center(
    int64_t out_index,
    int64_t stride,
    int64_t pad,
    int64_t dilation,
    int32_t kernel) {
  return static_cast<acc_t>(
      out_index * stride - pad + dilation * (kernel - 1) / 2);
}

// Distance of a tap from the kernel's centre before its learned offset.
// offset_scale widens the grid of taps.
template <typename acc_t>
DCNV3_HOST_DEVICE acc_t
tap_shift(int64_t dilation, int32_t kernel, int32_t tap, acc_t offset_scale) {
  const int64_t center = dilation * (kernel - 1) / 2;
  return static_cast<acc_t>(tap * dilation - center) * offset_scale;
}

// The weights of a bilinear sample. Corner k = 0..3 is pixel (y0 + k / 2, x0 +
// k % 2); ly and lx in [0, 1) are the weights of the lower and right corners.
// real_t is a number, or a vector of numbers of as many samples.
template <typename real_t>
struct Bilinear {
  real_t ly;
  real_t lx;

  DCNV3_HOST_DEVICE real_t weight(int corner) const {
    return ((corner >> 1) ? ly : 1 - ly) * ((corner & 1) ? lx : 1 - lx);
  }
  // Derivative of the sample along y, given a product per corner (for instance
  // the dot product of the corner with the output gradient).
  DCNV3_HOST_DEVICE real_t grad_y(const real_t (&corner)[4]) const {
    return (1 - lx) * (corner[2] - corner[0]) + lx * (corner[3] - corner[1]);
  }
  DCNV3_HOST_DEVICE real_t grad_x(const real_t (&corner)[4]) const {
    return (1 - ly) * (corner[1] - corner[0]) + ly * (corner[3] - corner[2]);
  }
  DCNV3_HOST_DEVICE real_t value(const real_t (&corner)[4]) const {
    return (1 - ly) * ((1 - lx) * corner[0] + lx * corner[1]) +
           ly * ((1 - lx) * corner[2] + lx * corner[3]);
  }
};

// A bilinear sample, and the pixel of its first corner. index_t is int32_t
// where the sides of an image fit: GPUs convert 64-bit integers slowly.
template <typename acc_t, typename index_t = int64_t>
struct Sample : Bilinear<acc_t> {
  index_t y0;
  index_t x0;

  DCNV3_HOST_DEVICE index_t row(int corner) const { return y0 + (corner >> 1); }
  DCNV3_HOST_DEVICE index_t column(int corner) const {
    return x0 + (corner & 1);
  }
};

// Fill `sample` if (y, x) is strictly inside (-1, height) x (-1, width);
// elsewhere, and for NaN, all corners are outside: return false.
template <typename acc_t, typename index_t>
DCNV3_HOST_DEVICE bool locate(
    acc_t y,
    acc_t x,
    index_t height,
    index_t width,
    Sample<acc_t, index_t>& sample) {
  if (!(y > -1 && y < static_cast<acc_t>(height) && x > -1 &&
        x < static_cast<acc_t>(width))) {
    return false;
  }
  // Truncation is floor() for what is above -1, after a step down below 0.
  const index_t y0 = static_cast<index_t>(y) - (y < 0 ? 1 : 0);
  const index_t x0 = static_cast<index_t>(x) - (x < 0 ? 1 : 0);
  sample.y0 = y0;
  sample.x0 = x0;
  sample.ly = y - static_cast<acc_t>(y0);
  sample.lx = x - static_cast<acc_t>(x0);
  return true;
}

}  // namespace dcnv3
