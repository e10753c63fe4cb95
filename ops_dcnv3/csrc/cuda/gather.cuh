// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "taps.cuh"

namespace dcnv3 {

template <typename scalar_t, typename point_t>
struct GatherPointers {
  const point_t* __restrict__ offset;
  const point_t* __restrict__ mask;
  const scalar_t* __restrict__ grad_output;
  scalar_t* __restrict__ grad_input;
};

// How the gradient of the input is cut into blocks.
template <typename acc_t>
struct Tiles {
  static constexpr int kBlockSize = 128;
  // The sums of a tile fit into 48 KiB of shared memory.
  static constexpr int kSide = sizeof(acc_t) == sizeof(float) ? 16 : 8;
  static constexpr int kChannels = 32;

  int64_t rows;
  int64_t columns;
  int64_t channel_parts;
  int64_t blocks;

  explicit Tiles(const Geometry& g)
      : rows((g.height + kSide - 1) / kSide),
        columns((g.width + kSide - 1) / kSide),
        channel_parts((g.group_channels + kChannels - 1) / kChannels),
        blocks(g.batch * g.groups * rows * columns * channel_parts) {}
};

// A point of some site that touches a tile.
template <typename acc_t>
struct TilePoint : Bilinear<acc_t> {
  acc_t mask;
  int32_t y0;  // within the tile, from -1 on
  int32_t x0;
  int64_t q;
};

template <typename acc_t>
struct GatherShared {
  static constexpr int kWarps = Tiles<acc_t>::kBlockSize / 32;
  static constexpr int kPixels = Tiles<acc_t>::kSide * Tiles<acc_t>::kSide;
  TilePoint<acc_t> list[Tiles<acc_t>::kBlockSize];
  acc_t sums[kPixels][Tiles<acc_t>::kChannels];
  int hits[kWarps];
};

// The gradient of the input without atomics, in an order that is always the
// same. A block sums a tile of kSide x kSide pixels (up to kChannels channels
// of one group of one image) in shared memory: it goes over all points of the
// image's sites in their order, kBlockSize at a time, one a thread, and lists
// those with a corner in the tile. Of the four corners of a point exactly one
// has each combination of even or odd row and even or odd column, so each of
// four sets of threads adds the corners of its combination, one channel a
// thread, in the order of the list: no two threads ever add to the same sum.
// Each gradient is written once, rounded once. The work grows with the square
// of the image's size, but a step without a hit is cheap.
template <typename scalar_t, typename point_t, typename acc_t>
__global__ void __launch_bounds__(Tiles<acc_t>::kBlockSize) gather_kernel(
    Geometry g,
    Tiles<acc_t> tiles,
    GatherPointers<scalar_t, point_t> p,
    TapShifts<acc_t, AnyTaps> shifts) {
  constexpr int kBlockSize = Tiles<acc_t>::kBlockSize;
  constexpr int kSide = Tiles<acc_t>::kSide;
  constexpr int kChannels = Tiles<acc_t>::kChannels;
  static_assert(kBlockSize == 4 * kChannels);
  auto& [list, sums, hits] = *shared_memory_as<GatherShared<acc_t>>();

  int64_t block = blockIdx.x;
  const int64_t first_channel = block % tiles.channel_parts * kChannels;
  block /= tiles.channel_parts;
  const int64_t left = block % tiles.columns * kSide;
  block /= tiles.columns;
  const int64_t top = block % tiles.rows * kSide;
  block /= tiles.rows;
  Site<int64_t> site;
  site.group = block % g.groups;
  site.n = block / g.groups;

  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int channel = thread % kChannels;
  const int odd_row = thread / kChannels / 2;
  const int odd_column = thread / kChannels % 2;
  const int64_t channels = g.group_channels - first_channel;
  for (int i = thread; i < kSide * kSide * kChannels; i += kBlockSize) {
    sums[i / kChannels][i % kChannels] = 0;
  }

  const int64_t points = g.out_height * g.out_width * g.points();
  for (int64_t start = 0; start < points; start += kBlockSize) {
    const int64_t item = start + thread;
    bool hit = false;
    TilePoint<acc_t> found = {};
    if (item < points) {
      const int32_t point = static_cast<int32_t>(item % g.points());
      const int64_t pixel = item / g.points();
      site.ho = pixel / g.out_width;
      site.wo = pixel % g.out_width;
      site.q =
          (site.n * g.out_height * g.out_width + pixel) * g.groups + site.group;
      PointReader<acc_t, point_t, AnyTaps> reader(
          g,
          shifts,
          site,
          p.offset,
          p.mask);
      Sample<acc_t> sample;
      hit = reader.sample(point, sample) && sample.y0 >= top - 1 &&
            sample.y0 < top + kSide && sample.x0 >= left - 1 &&
            sample.x0 < left + kSide;
      if (hit) {
        reader.prepare_softmax_alone();
        found.ly = sample.ly;
        found.lx = sample.lx;
        found.mask = reader.weight(point);
        found.y0 = static_cast<int32_t>(sample.y0 - top);
        found.x0 = static_cast<int32_t>(sample.x0 - left);
        found.q = site.q;
      }
    }
    const unsigned int votes = __ballot_sync(0xffffffffu, hit);
    if (thread % 32 == 0) {
      hits[warp] = __popc(votes);
    }
    __syncthreads();
    int before = 0;
    int count = 0;
    for (int other = 0; other < GatherShared<acc_t>::kWarps; ++other) {
      before += other < warp ? hits[other] : 0;
      count += hits[other];
    }
    if (hit) {
      const unsigned int lower = votes & ((1u << (thread % 32)) - 1);
      list[before + __popc(lower)] = found;
    }
    __syncthreads();
    for (int i = 0; i < count && channel < channels; ++i) {
      const TilePoint<acc_t> item = list[i];
      // The corner with this thread's kind of row and column.
      const int down = (item.y0 & 1) != odd_row;
      const int right = (item.x0 & 1) != odd_column;
      const int y = item.y0 + down;
      const int x = item.x0 + right;
      if (y >= 0 && y < kSide && x >= 0 && x < kSide) {
        const acc_t grad = static_cast<acc_t>(
            p.grad_output[item.q * g.group_channels + first_channel + channel]);
        sums[y * kSide + x][channel] +=
            item.mask * item.weight(2 * down + right) * grad;
      }
    }
    // hits and list are free again.
    __syncthreads();
  }

  __syncthreads();
  for (int i = thread; i < kSide * kSide * kChannels; i += kBlockSize) {
    const int64_t row = top + i / kChannels / kSide;
    const int64_t column = left + i / kChannels % kSide;
    if (row < g.height && column < g.width && i % kChannels < channels) {
      p.grad_input
          [((site.n * g.height + row) * g.width + column) * g.channels() +
           site.group * g.group_channels + first_channel + i % kChannels] =
          static_cast<scalar_t>(sums[i / kChannels][i % kChannels]);
    }
  }
}

}  // namespace dcnv3
