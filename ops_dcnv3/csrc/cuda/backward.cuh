// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "taps.cuh"

namespace dcnv3 {

// grad_input is of the accumulator's type and zero at the start; null where
// gather.cuh computes it.
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

// Compile-time sizes of a backward. Four channels a thread: an atomic addition
// of four floats is the widest there is. A fixed kernel has all points of a
// site in shared memory and at most one channel vector a thread.
template <typename scalar_t_, typename point_t_, int kVec_, typename Taps_>
struct BackwardTraits {
  using scalar_t = scalar_t_;
  using point_t = point_t_;
  using Taps = Taps_;
  using acc_t = typename Accumulator<scalar_t>::type;
  using index_t = typename Taps::index_t;
  static constexpr int kVec = kVec_;
  static constexpr int kWide = 16 / sizeof(acc_t);
  static constexpr int kBlockSize = 128;
  static constexpr int chunk() {
    if constexpr (Taps::kFixed) {
      return Taps::kPoints;
    } else {
      return 5;
    }
  }
  static constexpr int kChunk = chunk();

  static SiteOrder order(const Geometry& g) {
    return SiteOrder(g, g.group_channels / kVec, sizeof(scalar_t));
  }
  static int64_t shared_bytes(const SiteOrder& order) {
    return kBlockSize / order.team * kChunk *
           static_cast<int64_t>(sizeof(TapSlot<acc_t, index_t>));
  }
  static bool fits(const Geometry& g) {
    return g.group_channels / kVec <= 32 &&
           shared_bytes(order(g)) <= kMaxShared;
  }
  // What every GPU grants a block without being asked.
  static constexpr int64_t kMaxShared = 48 * 1024;
};

// Add kVec numbers to memory that other threads add to.
template <typename acc_t, int kVec>
__device__ inline void atomic_add(acc_t* address, const acc_t (&values)[kVec]) {
#pragma unroll
  for (int lane = 0; lane < kVec; ++lane) {
    atomicAdd(address + lane, values[lane]);
  }
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// Four additions in one instruction; each is atomic on its own.
template <>
__device__ inline void atomic_add(float* address, const float (&values)[4]) {
  atomicAdd(
      reinterpret_cast<float4*>(address),
      make_float4(values[0], values[1], values[2], values[3]));
}
#endif

// The part of a site that one thread sees: kVec channels of the input and of
// both gradients.
template <typename Traits>
struct SiteChannels {
  using scalar_t = typename Traits::scalar_t;
  using acc_t = typename Traits::acc_t;
  using index_t = typename Traits::index_t;

  const scalar_t* input;
  acc_t* grad_input;
  index_t column_step;
  index_t row_step;
  acc_t grads[Traits::kVec];

  __device__ void read_grads(const scalar_t* grad_output) {
    const auto values =
        load_if<scalar_t, Traits::kVec>(grad_output != nullptr, grad_output);
#pragma unroll
    for (int lane = 0; lane < Traits::kVec; ++lane) {
      grads[lane] = static_cast<acc_t>(values.lanes[lane]);
    }
  }

  // Add to dots the product of each corner with the output gradient and, if
  // `scatter`, to the corners their part of that gradient.
  __device__ void add(
      const Tap<acc_t, index_t>& tap,
      int64_t channel,
      bool scatter,
      acc_t (&dots)[4]) const {
    const index_t first = tap.pixel() * column_step;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const index_t position =
          first + (corner >> 1) * row_step + (corner & 1) * column_step;
      const auto values = load_if<scalar_t, Traits::kVec>(
          tap.has(corner),
          input + channel + position);
#pragma unroll
      for (int lane = 0; lane < Traits::kVec; ++lane) {
        dots[corner] += grads[lane] * static_cast<acc_t>(values.lanes[lane]);
      }
      if (scatter && tap.has(corner)) {
        const acc_t weight = tap.mask * tap.weight(corner);
        acc_t parts[Traits::kVec];
#pragma unroll
        for (int lane = 0; lane < Traits::kVec; ++lane) {
          parts[lane] = weight * grads[lane];
        }
        atomic_add(grad_input + channel + position, parts);
      }
    }
  }
};

// A team of `order.team` threads of a warp works on one site: thread t places
// points t, t + team, ... into shared memory, then works on channel vectors t,
// t + team, ... of every point. A block covers kBlockSize / team consecutive
// sites. Loads and atomic additions of a team are to neighbouring channels.
// grad_input is summed with atomics, as samples of different sites overlap;
// grad_offset and grad_mask are summed over the team by shuffles, in a fixed
// order, left in shared memory in place of the points and written once, side by
// side.
template <typename Traits>
__global__ void __launch_bounds__(Traits::kBlockSize) backward_kernel(
    Geometry g,
    SiteOrder order,
    BackwardPointers<typename Traits::scalar_t, typename Traits::point_t> p,
    TapShifts<typename Traits::acc_t, typename Traits::Taps> shifts) {
  using acc_t = typename Traits::acc_t;
  using index_t = typename Traits::index_t;
  using point_t = typename Traits::point_t;
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
  PointReader<acc_t, point_t, typename Traits::Taps> reader(
      g,
      shifts,
      site,
      p.offset,
      p.mask);
  reader.prepare_softmax(lane, team);

  SiteChannels<Traits> channels;
  channels.column_step = static_cast<index_t>(g.channels());
  channels.row_step = static_cast<index_t>(g.width) * channels.column_step;
  const int64_t start_of_group =
      static_cast<int64_t>(site.n) * g.height * channels.row_step +
      site.group * g.group_channels;
  channels.input = p.input + start_of_group;
  channels.grad_input = p.grad_input + start_of_group;
  const auto* grad_output =
      p.grad_output + static_cast<int64_t>(site.q) * g.group_channels;
  const int64_t vectors = g.group_channels / Traits::kVec;
  const bool has_channels = lane < vectors;
  if constexpr (Traits::Taps::kFixed) {
    channels.read_grads(
        has_channels ? grad_output + lane * Traits::kVec : nullptr);
  }

  auto* slots =
      shared_memory_as<TapSlot<acc_t, index_t>>() + team_index * Traits::kChunk;
  const auto place = [&](int32_t start, int32_t count) {
    __syncwarp();
    for (int32_t k = lane; k < count; k += team) {
      slots[k].tap = reader.tap(start + k);
    }
    __syncwarp();
  };
  // The products of this thread's channels with the corners of a point.
  const auto multiply =
      [&](const Tap<acc_t, index_t>& tap, bool scatter, acc_t(&dots)[4]) {
        if constexpr (Traits::Taps::kFixed) {
          if (has_channels) {
            channels.add(tap, lane * Traits::kVec, scatter, dots);
          }
        } else {
          for (int64_t vector = lane; vector < vectors; vector += team) {
            channels.read_grads(grad_output + vector * Traits::kVec);
            channels.add(tap, vector * Traits::kVec, scatter, dots);
          }
        }
    // A product of what is outside with an infinite gradient is NaN.
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          dots[corner] = tap.has(corner) ? dots[corner] : 0;
        }
      };
  const auto size_of_chunk = [&](int32_t start) {
    const int32_t left = reader.points() - start;
    return Traits::Taps::kFixed || left > Traits::kChunk ? Traits::kChunk
                                                         : left;
  };

  // The gradient of logit k is mask_k * (value_k - sum_j mask_j * value_j). A
  // fixed kernel knows the sum before it writes; others go over the points
  // twice.
  acc_t softmax_sum = 0;
  if (!Traits::Taps::kFixed && g.softmax) {
    for (int32_t start = 0; start < reader.points(); start += Traits::kChunk) {
      const int32_t count = size_of_chunk(start);
      place(start, count);
      for (int32_t k = 0; k < count; ++k) {
        acc_t dots[4] = {};
        const Tap<acc_t, index_t> tap = slots[k].tap;
        multiply(tap, false, dots);
        softmax_sum += tap.mask * team_sum(tap.value(dots), team);
      }
    }
  }

  const bool scatter = active && p.grad_input != nullptr;
  for (int32_t start = 0; start < reader.points(); start += Traits::kChunk) {
    const int32_t count = size_of_chunk(start);
    place(start, count);
#pragma unroll 3
    for (int32_t k = 0; k < count; ++k) {
      const Tap<acc_t, index_t> tap = slots[k].tap;
      acc_t dots[4] = {};
      multiply(tap, scatter, dots);
      const acc_t value = team_sum(tap.value(dots), team);
      const acc_t x = team_sum(tap.grad_x(dots), team);
      const acc_t y = team_sum(tap.grad_y(dots), team);
      if (Traits::Taps::kFixed) {
        softmax_sum += tap.mask * value;
      }
      // Shuffles order no memory: all must have read the tap before it goes.
      __syncwarp();
      if (lane == 0) {
        // A point outside has no gradient, whatever its mask is.
        const acc_t factor = (tap.place & 15)
                                 ? tap.mask * static_cast<acc_t>(g.offset_scale)
                                 : 0;
        slots[k].grad = {factor * x, factor * y, value, tap.mask};
      }
    }
    __syncwarp();
    for (int32_t k = lane; active && k < count; k += team) {
      const TapGrad<acc_t> grad = slots[k].grad;
      const int64_t point =
          static_cast<int64_t>(site.q) * reader.points() + start + k;
      reinterpret_cast<Vector<point_t, 2>*>(p.grad_offset)[point] = {
          {static_cast<point_t>(grad.x), static_cast<point_t>(grad.y)}};
      p.grad_mask[point] = static_cast<point_t>(
          g.softmax ? grad.mask * (grad.value - softmax_sum) : grad.value);
    }
  }
}

}  // namespace dcnv3
