// SPDX-License-Identifier: Apache-2.0
// Where a point samples and with which weights: the only copy of this
// arithmetic, for host and device. acc_t is float, or double for double
// tensors.
#pragma once

#include "geometry.h"

namespace dcnv3 {

// Position of a kernel tap before its learned offset, in input pixels along one
// axis. offset_scale widens the grid of taps around the kernel's centre.
template <typename acc_t>
DCNV3_HOST_DEVICE acc_t tap_position(
    int64_t out_index,
    int64_t stride,
    int64_t pad,
    int64_t dilation,
    int32_t kernel,
    int32_t tap,
    acc_t offset_scale) {
  const int64_t center = dilation * (kernel - 1) / 2;
  return static_cast<acc_t>(out_index * stride - pad + center) +
         static_cast<acc_t>(tap * dilation - center) * offset_scale;
}

// A bilinear sample. Corner k = 0..3 is pixel (y0 + k / 2, x0 + k % 2); ly and
// lx in [0, 1) are the weights of the lower and right corners.
template <typename acc_t>
struct Sample {
  int64_t y0;
  int64_t x0;
  acc_t ly;
  acc_t lx;

  DCNV3_HOST_DEVICE int64_t row(int corner) const { return y0 + (corner >> 1); }
  DCNV3_HOST_DEVICE int64_t column(int corner) const {
    return x0 + (corner & 1);
  }
  DCNV3_HOST_DEVICE acc_t weight(int corner) const {
    return ((corner >> 1) ? ly : 1 - ly) * ((corner & 1) ? lx : 1 - lx);
  }
  // Derivative of the sample along y, given a product per corner (for instance
  // the dot product of the corner with the output gradient).
  DCNV3_HOST_DEVICE acc_t grad_y(const acc_t (&corner)[4]) const {
    return (1 - lx) * (corner[2] - corner[0]) + lx * (corner[3] - corner[1]);
  }
  DCNV3_HOST_DEVICE acc_t grad_x(const acc_t (&corner)[4]) const {
    return (1 - ly) * (corner[1] - corner[0]) + ly * (corner[3] - corner[2]);
  }
  DCNV3_HOST_DEVICE acc_t value(const acc_t (&corner)[4]) const {
    return (1 - ly) * ((1 - lx) * corner[0] + lx * corner[1]) +
           ly * ((1 - lx) * corner[2] + lx * corner[3]);
  }
};

// Fill `sample` if (y, x) is strictly inside (-1, height) x (-1, width);
// elsewhere, and for NaN, all corners are outside: return false.
template <typename acc_t>
DCNV3_HOST_DEVICE bool
locate(acc_t y, acc_t x, int64_t height, int64_t width, Sample<acc_t>& sample) {
  if (!(y > -1 && y < static_cast<acc_t>(height) && x > -1 &&
        x < static_cast<acc_t>(width))) {
    return false;
  }
  // Truncation is floor() for what is above -1, after a step down below 0.
  const int64_t y0 = static_cast<int64_t>(y) - (y < 0 ? 1 : 0);
  const int64_t x0 = static_cast<int64_t>(x) - (x < 0 ? 1 : 0);
  sample.y0 = y0;
  sample.x0 = x0;
  sample.ly = y - static_cast<acc_t>(y0);
  sample.lx = x - static_cast<acc_t>(x0);
  return true;
}

}  // namespace dcnv3
