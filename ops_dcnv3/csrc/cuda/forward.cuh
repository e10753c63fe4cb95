// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "taps.cuh"

namespace dcnv3 {

template <typename scalar_t, typename point_t>
struct ForwardPointers {
  const scalar_t* __restrict__ input;
  const point_t* __restrict__ offset;
  const point_t* __restrict__ mask;
  scalar_t* __restrict__ output;
};

// Compile-time sizes of a forward. kChunk points of a site are in shared memory
// at a time: all of 3x3, a column of 5x5.
template <typename scalar_t_, typename point_t_, int kVec_, typename Taps_>
struct ForwardTraits {
  using scalar_t = scalar_t_;
  using point_t = point_t_;
  using Taps = Taps_;
  using acc_t = typename Accumulator<scalar_t>::type;
  using index_t = typename Taps::index_t;
  static constexpr int kVec = kVec_;
  static constexpr int kWide = 16 / sizeof(scalar_t);
  static constexpr int kBlockSize = 256;
  static constexpr int chunk() {
    if constexpr (Taps::kFixed) {
      return Taps::kPoints <= 9 ? Taps::kPoints : 5;
    } else {
      return 5;
    }
  }
  static constexpr int kChunk = chunk();
  static constexpr bool kOneChunk = kChunk == Taps::kPoints;

  static SiteOrder order(const Geometry& g) {
    return SiteOrder(g, g.group_channels / kVec, sizeof(scalar_t));
  }
  static int64_t shared_bytes(const SiteOrder& order) {
    return kBlockSize / order.team * kChunk *
           static_cast<int64_t>(sizeof(TapSlot<acc_t, index_t>));
  }
  static bool fits(const Geometry&) { return true; }
  static_assert(kBlockSize * kChunk * sizeof(TapSlot<acc_t, index_t>) <= 49152);
};

// Add one point to the sums of kVec channels.
template <typename Traits>
__device__ inline void add_tap(
    const Tap<typename Traits::acc_t, typename Traits::index_t>& tap,
    const typename Traits::scalar_t* input,
    typename Traits::index_t column_step,
    typename Traits::index_t row_step,
    typename Traits::acc_t (&sums)[Traits::kVec]) {
  using Channels = Vector<typename Traits::scalar_t, Traits::kVec>;
  const typename Traits::scalar_t* first = input + tap.pixel() * column_step;
  Channels corners[4];
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    corners[corner] = load_if<typename Traits::scalar_t, Traits::kVec>(
        tap.has(corner),
        first + (corner >> 1) * row_step + (corner & 1) * column_step);
  }
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const typename Traits::acc_t weight =
        tap.has(corner) ? tap.mask * tap.weight(corner) : 0;
#pragma unroll
    for (int lane = 0; lane < Traits::kVec; ++lane) {
      sums[lane] += weight * static_cast<typename Traits::acc_t>(
                                 corners[corner].lanes[lane]);
    }
  }
}

// A team of `order.team` threads of a warp works on one site: thread t places
// points t, t + team, ... into shared memory, then sums channel vectors t, t +
// team, ... over all points. A block covers kBlockSize / team consecutive
// sites, which SiteOrder keeps close together in the image. A load of kVec
// channels is 16 bytes, and those of the threads of a site and of neighbouring
// groups lie side by side, as do the offsets. Each output is written once, by
// its own thread.
template <typename Traits>
__global__ void __launch_bounds__(Traits::kBlockSize) forward_kernel(
    Geometry g,
    SiteOrder order,
    ForwardPointers<typename Traits::scalar_t, typename Traits::point_t> p,
    TapShifts<typename Traits::acc_t, typename Traits::Taps> shifts) {
  using acc_t = typename Traits::acc_t;
  using index_t = typename Traits::index_t;
  using Channels = Vector<typename Traits::scalar_t, Traits::kVec>;
  const int team = order.team;
  const int lane = threadIdx.x & (team - 1);
  const int team_index = threadIdx.x / team;
  const index_t wanted =
      static_cast<index_t>(blockIdx.x) * (Traits::kBlockSize / team) +
      team_index;
  // Teams beyond the end repeat the last site without writing: warps stay
  // whole.
  const index_t last = static_cast<index_t>(order.sites - 1);
  const bool active = wanted <= last;
  const Site<index_t> site(g, order, active ? wanted : last);
  PointReader<acc_t, typename Traits::point_t, typename Traits::Taps> reader(
      g,
      shifts,
      site,
      p.offset,
      p.mask);
  reader.prepare_softmax(lane, team);

  const index_t column_step = static_cast<index_t>(g.channels());
  const index_t row_step = static_cast<index_t>(g.width) * column_step;
  const auto* input = p.input +
                      static_cast<int64_t>(site.n) * g.height * row_step +
                      site.group * g.group_channels;
  auto* slots =
      shared_memory_as<TapSlot<acc_t, index_t>>() + team_index * Traits::kChunk;
  const int64_t vectors = g.group_channels / Traits::kVec;
  const auto place = [&](int32_t start, int32_t count) {
    __syncwarp();
    // Not unrolled: registers are scarce, and the first turn brings the cache
    // lines of the others.
#pragma unroll 1
    for (int32_t k = lane; k < count; k += team) {
      slots[k].tap = reader.tap(start + k);
    }
    __syncwarp();
  };
  if constexpr (Traits::kOneChunk) {
    place(0, Traits::kChunk);
  }
  // As many turns for all threads, as they meet where points are placed.
  for (int64_t base = 0; base < vectors; base += team) {
    const int64_t channel = (base + lane) * Traits::kVec;
    const bool has_channels = base + lane < vectors;
    acc_t sums[Traits::kVec] = {};
#pragma unroll 1
    for (int32_t start = 0; start < reader.points(); start += Traits::kChunk) {
      const int32_t left = reader.points() - start;
      const int32_t count =
          Traits::Taps::kFixed || left > Traits::kChunk ? Traits::kChunk : left;
      if constexpr (!Traits::kOneChunk) {
        place(start, count);
      }
      if (has_channels) {
#pragma unroll
        for (int32_t k = 0; k < Traits::kChunk; ++k) {
          if (k < count) {
            const Tap<acc_t, index_t> tap = slots[k].tap;
            add_tap<Traits>(tap, input + channel, column_step, row_step, sums);
          }
        }
      }
    }
    if (active && has_channels) {
      Channels result;
#pragma unroll
      for (int i = 0; i < Traits::kVec; ++i) {
        result.lanes[i] = static_cast<typename Traits::scalar_t>(sums[i]);
      }
      *reinterpret_cast<Channels*>(
          p.output + static_cast<int64_t>(site.q) * g.group_channels +
          channel) = result;
    }
  }
}

}  // namespace dcnv3
