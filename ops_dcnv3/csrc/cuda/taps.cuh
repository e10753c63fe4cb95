// SPDX-License-Identifier: Apache-2.0
// The sampling points of a site, read once by a team of threads and left in
// shared memory for all of its channels.
#pragma once

#include <cmath>

#include "sites.cuh"

namespace dcnv3 {

// A sampling point. mask is its weight; place holds 16 * (y0 * W + x0) plus a
// bit for each corner that is inside the image; no bit means that the point
// adds nothing. 16 bytes in single precision: one access to shared memory.
template <typename acc_t, typename index_t>
struct alignas(16) Tap : Bilinear<acc_t> {
  acc_t mask;
  index_t place;

  __device__ bool has(int corner) const { return (place >> corner) & 1; }
  __device__ index_t pixel() const { return place >> 4; }
};

// The gradients of a point, which take the place of its tap.
template <typename acc_t>
struct TapGrad {
  acc_t x;
  acc_t y;
  acc_t value;
  acc_t mask;
};

template <typename acc_t, typename index_t>
union TapSlot {
  Tap<acc_t, index_t> tap;
  TapGrad<acc_t> grad;
};

// Distances of the points from the kernel's centre. The host computes them for
// fixed kernels.
template <typename acc_t, typename Taps>
struct TapShifts {
  acc_t ys[Taps::kPoints];
  acc_t xs[Taps::kPoints];

  explicit TapShifts(const Geometry& g) {
    const acc_t scale = static_cast<acc_t>(g.offset_scale);
    for (int32_t point = 0; point < Taps::kPoints; ++point) {
      ys[point] =
          tap_shift<acc_t>(g.dilation_h, g.kernel_h, point % g.kernel_h, scale);
      xs[point] =
          tap_shift<acc_t>(g.dilation_w, g.kernel_w, point / g.kernel_h, scale);
    }
  }
  __device__ acc_t y(const Geometry&, int32_t point) const { return ys[point]; }
  __device__ acc_t x(const Geometry&, int32_t point) const { return xs[point]; }
};

template <typename acc_t>
struct TapShifts<acc_t, AnyTaps> {
  explicit TapShifts(const Geometry&) {}
  __device__ acc_t y(const Geometry& g, int32_t point) const {
    return tap_shift<acc_t>(
        g.dilation_h,
        g.kernel_h,
        tap_of(g, point) % g.kernel_h,
        static_cast<acc_t>(g.offset_scale));
  }
  __device__ acc_t x(const Geometry& g, int32_t point) const {
    return tap_shift<acc_t>(
        g.dilation_w,
        g.kernel_w,
        tap_of(g, point) / g.kernel_h,
        static_cast<acc_t>(g.offset_scale));
  }

 private:
  // Points skip the central tap where it is removed.
  static __device__ int32_t tap_of(const Geometry& g, int32_t point) {
    const int32_t center = (g.kernel_w / 2) * g.kernel_h + g.kernel_h / 2;
    return point + (g.remove_center && point >= center ? 1 : 0);
  }
};

// Sum a value over teams of neighbouring threads. Every thread of the warp must
// call it.
template <typename acc_t>
__device__ inline acc_t team_sum(acc_t value, int team) {
  for (int distance = team / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

template <typename acc_t>
__device__ inline acc_t team_max(acc_t value, int team) {
  for (int distance = team / 2; distance > 0; distance /= 2) {
    const acc_t other = __shfl_xor_sync(0xffffffffu, value, distance);
    value = other > value ? other : value;
  }
  return value;
}

// Reads the points of one site.
template <typename acc_t, typename point_t, typename Taps>
class PointReader {
 public:
  using index_t = typename Taps::index_t;

  __device__ PointReader(
      const Geometry& g,
      const TapShifts<acc_t, Taps>& shifts,
      const Site<index_t>& site,
      const point_t* offset,
      const point_t* mask)
      : g_(g),
        shifts_(shifts),
        offset_(
            reinterpret_cast<const Vector<point_t, 2>*>(offset) +
            static_cast<int64_t>(site.q) * points()),
        mask_(mask + static_cast<int64_t>(site.q) * points()),
        center_y_(
            tap_center<acc_t>(
                site.ho,
                g.stride_h,
                g.pad_h,
                g.dilation_h,
                g.kernel_h)),
        center_x_(
            tap_center<acc_t>(
                site.wo,
                g.stride_w,
                g.pad_w,
                g.dilation_w,
                g.kernel_w)),
        scale_(static_cast<acc_t>(g.offset_scale)) {}

  __device__ int32_t points() const {
    if constexpr (Taps::kFixed) {
      return Taps::kPoints;
    } else {
      return g_.points();
    }
  }

  // Find what turns logits into weights, together with the team. A NaN logit
  // makes the sum NaN, and with it every weight.
  __device__ void prepare_softmax(int lane, int team) {
    if (!g_.softmax) {
      return;
    }
    acc_t largest = -INFINITY;
    for (int32_t point = lane; point < points(); point += team) {
      const acc_t logit = static_cast<acc_t>(mask_[point]);
      largest = logit > largest ? logit : largest;
    }
    largest_ = team_max(largest, team);
    acc_t sum = 0;
    for (int32_t point = lane; point < points(); point += team) {
      sum += std::exp(static_cast<acc_t>(mask_[point]) - largest_);
    }
    factor_ = 1 / team_sum(sum, team);
  }

  // The same without a team: of the threads of a warp only some may call it.
  __device__ void prepare_softmax_alone() { prepare_softmax(0, 1); }

  __device__ acc_t weight(int32_t point) const {
    const acc_t value = static_cast<acc_t>(mask_[point]);
    return g_.softmax ? std::exp(value - largest_) * factor_ : value;
  }

  __device__ bool sample(int32_t point, Sample<acc_t, index_t>& sample) const {
    const Vector<point_t, 2> offset = offset_[point];
    const acc_t dx = static_cast<acc_t>(offset.lanes[0]);
    const acc_t dy = static_cast<acc_t>(offset.lanes[1]);
    return locate<acc_t, index_t>(
        center_y_ + shifts_.y(g_, point) + dy * scale_,
        center_x_ + shifts_.x(g_, point) + dx * scale_,
        static_cast<index_t>(g_.height),
        static_cast<index_t>(g_.width),
        sample);
  }

  __device__ Tap<acc_t, index_t> tap(int32_t point) const {
    const index_t height = static_cast<index_t>(g_.height);
    const index_t width = static_cast<index_t>(g_.width);
    Tap<acc_t, index_t> tap = {};
    Sample<acc_t, index_t> where;
    const bool inside = sample(point, where);
    // A mask outside the image may be NaN and must not reach the gradients. A
    // softmax counts the point all the same, and so does its gradient.
    if (inside || g_.softmax) {
      tap.mask = weight(point);
    }
    if (inside) {
      const bool top = where.y0 >= 0;
      const bool bottom = where.y0 < height - 1;
      const bool left = where.x0 >= 0;
      const bool right = where.x0 < width - 1;
      const index_t corners = (top && left ? 1 : 0) | (top && right ? 2 : 0) |
                              (bottom && left ? 4 : 0) |
                              (bottom && right ? 8 : 0);
      tap.ly = where.ly;
      tap.lx = where.lx;
      tap.place = (where.y0 * width + where.x0) * 16 + corners;
    }
    return tap;
  }

 private:
  const Geometry& g_;
  const TapShifts<acc_t, Taps>& shifts_;
  const Vector<point_t, 2>* offset_;
  const point_t* mask_;
  acc_t center_y_;
  acc_t center_x_;
  acc_t scale_;
  acc_t largest_ = 0;
  acc_t factor_ = 0;
};

// The block's dynamic shared memory.
template <typename T>
__device__ inline T* shared_memory_as() {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  return reinterpret_cast<T*>(shared_memory);
}

}  // namespace dcnv3
