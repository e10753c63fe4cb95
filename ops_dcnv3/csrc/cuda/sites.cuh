// SPDX-License-Identifier: Apache-2.0
// Which output pixel and group ("site") a thread works on. Like all kernel
// headers this includes nothing of PyTorch but its half-precision types, so
// that the tests can run this very code on the CPU.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>

#include "../sampling.h"

namespace dcnv3 {

template <typename scalar_t>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

// kVec neighbours that move in one load or store.
template <typename scalar_t, int kVec>
struct alignas(sizeof(scalar_t) * kVec) Vector {
  scalar_t lanes[kVec];
};

// Read kVec numbers in one load; zeros where `inside` is false. They travel as
// whole words: compilers pick halves that are loaded under a condition apart,
// at several instructions each.
template <typename scalar_t, int kVec>
__device__ inline Vector<scalar_t, kVec> load_if(
    bool inside,
    const scalar_t* address) {
  Vector<scalar_t, kVec> values;
  if constexpr (sizeof(values) < sizeof(uint32_t)) {
    values = Vector<scalar_t, kVec>{};
    if (inside) {
      values = *reinterpret_cast<const Vector<scalar_t, kVec>*>(address);
    }
  } else {
    using Words = Vector<uint32_t, sizeof(values) / sizeof(uint32_t)>;
    Words words = {};
    if (inside) {
      words = *reinterpret_cast<const Words*>(address);
    }
    std::memcpy(&values, &words, sizeof(values));
  }
  return values;
}

// Sizes that a kernel is compiled for. A fixed kernel has all taps unrolled and
// counts in 32 bits; AnyTaps takes every kernel and every size of tensor.
template <int kHeight, int kWidth>
struct FixedTaps {
  using index_t = int32_t;
  static constexpr bool kFixed = true;
  static constexpr int kPoints = kHeight * kWidth;
};
struct AnyTaps {
  using index_t = int64_t;
  static constexpr bool kFixed = false;
  static constexpr int kPoints = 0;  // known at run time
};

template <typename index_t>
struct Quotient {
  index_t quotient;
  index_t remainder;
};

// Division of integers from 0 on by a size that the host knows. 32-bit division
// takes about 20 instructions on a GPU and 64-bit several times as many; below
// 2^31 a product with a fixed-point reciprocal does: with size <= 2^s and
// m = floor(2^32 (2^s - size) / size) + 1 the quotient is exactly
// (high half of index * m + index) >> s.
class Divisor {
 public:
  Divisor() : Divisor(1) {}
  explicit Divisor(int64_t size) : size_(size), magic_(0), shift_(0) {
    if (size <= kMaximum) {
      while ((int64_t{1} << shift_) < size) {
        ++shift_;
      }
      magic_ = static_cast<uint32_t>(
          (((uint64_t{1} << shift_) - size) << 32) / size + 1);
    }
  }

  __device__ int64_t size() const { return size_; }
  __device__ Quotient<int32_t> divide(int32_t index) const {
    const uint32_t quotient =
        (__umulhi(static_cast<uint32_t>(index), magic_) + index) >> shift_;
    return {
        static_cast<int32_t>(quotient),
        static_cast<int32_t>(index - quotient * static_cast<uint32_t>(size_))};
  }
  __device__ Quotient<int64_t> divide(int64_t index) const {
    if (index <= kMaximum && size_ <= kMaximum) {
      const Quotient<int32_t> q = divide(static_cast<int32_t>(index));
      return {q.quotient, q.remainder};
    }
    return {index / size_, index % size_};
  }

 private:
  static constexpr int64_t kMaximum = 0x7fffffff;
  int64_t size_;
  uint32_t magic_;
  int32_t shift_;
};

// The order of the sites. Neighbouring blocks of threads shall sample
// neighbouring pixels, which then come from the L1 cache, so an image is walked
// in strips of kStripRows rows, column by column, for one bundle of groups
// after the other:
//
//   site = (((n * bundles + bundle) * strips + strip) * Wo + wo) * rows + row)
//          * bundle size + group of the bundle
//
//    strip 0   0  4  8 ...      (last strip: as many rows as are left)
//              1  5  9
//              2  6 10
//              3  7 11
struct SiteOrder {
  static constexpr int kStripRows = 4;
  // Bytes of a bundle of groups: some cache lines, so that a block has several
  // pixels.
  static constexpr int64_t kBundleBytes = 512;

  // Threads that work on a site, a power of two up to a warp.
  int32_t team;
  int64_t sites;
  Divisor bundle;   // groups of a bundle
  Divisor bundles;  // bundles of an image
  Divisor plane;    // sites of a bundle and an image
  Divisor strip;    // pixels of a strip
  Divisor last_rows;

  SiteOrder(const Geometry& g, int64_t vectors, int64_t scalar_size)
      : team(1), sites(g.out_pixels() * g.groups) {
    while (team < 32 && team < vectors) {
      team *= 2;
    }
    int64_t size = 1;
    for (int64_t divisor = 2; divisor <= g.groups; ++divisor) {
      if (g.groups % divisor == 0 &&
          divisor * g.group_channels * scalar_size <= kBundleBytes) {
        size = divisor;
      }
    }
    bundle = Divisor(size);
    bundles = Divisor(g.groups / size);
    plane = Divisor(g.out_height * g.out_width * size);
    strip = Divisor(kStripRows * g.out_width);
    last_rows = Divisor((g.out_height - 1) % kStripRows + 1);
  }
};

template <typename index_t>
struct Site {
  index_t n;
  index_t ho;
  index_t wo;
  index_t group;
  // pixel * G + group: where the site's offsets, masks and outputs are.
  index_t q;

  Site() = default;
  __device__ Site(const Geometry& g, const SiteOrder& order, index_t index) {
    const Quotient<index_t> by_plane = order.plane.divide(index);
    const Quotient<index_t> by_bundles =
        order.bundles.divide(by_plane.quotient);
    const Quotient<index_t> by_bundle = order.bundle.divide(by_plane.remainder);
    const Quotient<index_t> by_strip = order.strip.divide(by_bundle.quotient);
    const index_t top = by_strip.quotient * SiteOrder::kStripRows;
    const index_t height = static_cast<index_t>(g.out_height);
    Quotient<index_t> by_rows = {
        by_strip.remainder / SiteOrder::kStripRows,
        by_strip.remainder % SiteOrder::kStripRows};
    if (height - top < SiteOrder::kStripRows) {
      by_rows = order.last_rows.divide(by_strip.remainder);
    }
    n = by_bundles.quotient;
    group = by_bundles.remainder * static_cast<index_t>(order.bundle.size()) +
            by_bundle.remainder;
    wo = by_rows.quotient;
    ho = top + by_rows.remainder;
    q = ((n * height + ho) * static_cast<index_t>(g.out_width) + wo) *
            static_cast<index_t>(g.groups) +
        group;
  }
};

// Whether a fixed kernel can count everything in 32 bits: the elements of an
// image, the sites of the batch (with a block more), and the pixels of an image
// with a border of one, times 16 (see Tap).
inline bool fits_32_bits(const Geometry& g) {
  constexpr int64_t kMaximum = 0x7fffffff;
  const auto product_fits = [](int64_t a, int64_t b, int64_t limit) {
    return b <= limit / a;
  };
  const int64_t height = g.height + 1;
  const int64_t width = g.width + 1;
  return product_fits(height, width, kMaximum / 16) &&
         product_fits(height * width, g.channels(), kMaximum) &&
         product_fits(
             SiteOrder::kStripRows + g.out_height,
             g.out_width,
             kMaximum) &&
         product_fits(
             (SiteOrder::kStripRows + g.out_height) * g.out_width,
             g.batch * g.groups,
             kMaximum - 1024);
}

}  // namespace dcnv3
