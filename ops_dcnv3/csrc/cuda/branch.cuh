// SPDX-License-Identifier: Apache-2.0
// DCNv3's depthwise branch in one pass: convolution, LayerNorm, GELU.
#pragma once

#include <cmath>

#include "taps.cuh"

namespace dcnv3 {

// Features are of scalar_t, parameters of param_t. weight is (C, kernel_h,
// kernel_w), the other parameters (C,).
template <typename scalar_t, typename param_t>
struct BranchPointers {
  const scalar_t* __restrict__ input;
  const param_t* __restrict__ weight;
  const param_t* __restrict__ bias;
  const param_t* __restrict__ norm_weight;
  const param_t* __restrict__ norm_bias;
  scalar_t* __restrict__ output;
};

// Compile-time sizes: a thread convolves kRun neighbouring pixels of a row in
// kVec channels, so that a number read serves up to kSide of them. kSide is the
// side of the kernel, or 0 for any kernel.
template <
    typename scalar_t_,
    typename param_t_,
    int kSide_,
    int kVec_,
    int kRun_>
struct BranchTraits {
  using scalar_t = scalar_t_;
  using param_t = param_t_;
  using acc_t = typename Accumulator<scalar_t>::type;
  static constexpr int kSide = kSide_;
  static constexpr int kVec = kVec_;
  static constexpr int kRun = kRun_;
  static constexpr int kBlockSize = 256;
  // What every GPU grants a block without being asked.
  static constexpr int64_t kMaxShared = 48 * 1024;

  static int64_t shared_bytes(int64_t pixels, int64_t channels) {
    return pixels * channels * static_cast<int64_t>(sizeof(acc_t));
  }
  // The sums of a full block, and of a single run of many channels.
  static_assert(kBlockSize * kRun * kVec * sizeof(acc_t) <= kMaxShared);
  static bool fits(const BranchSizes& s) {
    return s.channels % kVec == 0 &&
           (kSide == 0 || (s.kernel_h == kSide && s.kernel_w == kSide)) &&
           shared_bytes(kRun, s.channels) <= kMaxShared;
  }
};

// How the pixels are cut into blocks: tiles of `rows` x `columns`, about as
// high as wide, as tiles share a border of kernel_side / 2 pixels. A tile has
// as many runs as keep all threads of a block busy.
struct BranchTiles {
  int64_t rows;
  int64_t pixels;
  int64_t blocks;
  // Threads that share a pixel once it is convolved: a power of two up to a
  // warp.
  int32_t team;
  Divisor vectors;   // of a pixel
  Divisor columns;   // of a tile
  Divisor row_runs;  // of a row of a tile
  Divisor across;    // tiles of a row of the image
  Divisor down;

  template <typename Traits>
  static BranchTiles make(const BranchSizes& s) {
    const int64_t vectors = s.channels / Traits::kVec;
    const int64_t busy = Traits::kBlockSize / vectors;
    const int64_t runs = busy < 1 ? 1 : busy;
    int64_t row_runs = 1;
    while (4 * row_runs * row_runs * Traits::kRun <= runs) {
      row_runs *= 2;
    }
    BranchTiles tiles;
    const int64_t columns = row_runs * Traits::kRun;
    tiles.rows = runs / row_runs;
    tiles.pixels = tiles.rows * columns;
    const int64_t across = (s.width + columns - 1) / columns;
    const int64_t down = (s.height + tiles.rows - 1) / tiles.rows;
    tiles.blocks = s.batch * down * across;
    tiles.team = 1;
    while (tiles.team < 32 && tiles.team < vectors) {
      tiles.team *= 2;
    }
    tiles.vectors = Divisor(vectors);
    tiles.columns = Divisor(columns);
    tiles.row_runs = Divisor(row_runs);
    tiles.across = Divisor(across);
    tiles.down = Divisor(down);
    return tiles;
  }
};

// Read kCount numbers, the first at a multiple of kVec numbers, as the widest
// loads that 16 bytes allow.
template <int kVec, int kCount, typename scalar_t, typename acc_t>
__device__ inline void load_widened(
    const scalar_t* source,
    acc_t (&target)[kCount]) {
  constexpr int kMost = 16 / sizeof(scalar_t);
  constexpr int kWidth = kVec < kMost ? kVec : kMost;
  static_assert(kCount % kWidth == 0);
#pragma unroll
  for (int i = 0; i < kCount; i += kWidth) {
    const auto part =
        *reinterpret_cast<const Vector<scalar_t, kWidth>*>(source + i);
#pragma unroll
    for (int lane = 0; lane < kWidth; ++lane) {
      target[i + lane] = static_cast<acc_t>(part.lanes[lane]);
    }
  }
}

// Convolve a run of pixels from (y, x) on in kVec channels from `channel` on.
template <typename Traits>
__device__ inline void convolve_run(
    const BranchSizes& s,
    const BranchPointers<typename Traits::scalar_t, typename Traits::param_t>&
        p,
    int64_t n,
    int32_t y,
    int32_t x,
    int64_t channel,
    typename Traits::acc_t (&sums)[Traits::kRun][Traits::kVec]) {
  using scalar_t = typename Traits::scalar_t;
  using acc_t = typename Traits::acc_t;
  constexpr int kVec = Traits::kVec;
  const int32_t height = static_cast<int32_t>(s.height);
  const int32_t width = static_cast<int32_t>(s.width);
  const scalar_t* image =
      p.input + n * s.height * s.width * s.channels + channel;
  acc_t bias[kVec];
  load_widened<kVec>(p.bias + channel, bias);
#pragma unroll
  for (int i = 0; i < Traits::kRun; ++i) {
#pragma unroll
    for (int lane = 0; lane < kVec; ++lane) {
      sums[i][lane] = bias[lane];
    }
  }
  if constexpr (Traits::kSide > 0) {
    constexpr int kSide = Traits::kSide;
    acc_t weight[kVec * kSide * kSide];
    load_widened<kVec>(p.weight + channel * (kSide * kSide), weight);
#pragma unroll
    for (int row = 0; row < kSide; ++row) {
      const int32_t from_y = y + row - kSide / 2;
      const bool has_row = from_y >= 0 && from_y < height;
      const scalar_t* line =
          image + static_cast<int64_t>(from_y) * s.width * s.channels;
#pragma unroll
      for (int column = 0; column < Traits::kRun + kSide - 1; ++column) {
        const int32_t from_x = x + column - kSide / 2;
        const auto features = load_if<scalar_t, kVec>(
            has_row && from_x >= 0 && from_x < width,
            line + from_x * s.channels);
#pragma unroll
        for (int lane = 0; lane < kVec; ++lane) {
          const acc_t feature = static_cast<acc_t>(features.lanes[lane]);
#pragma unroll
          for (int i = 0; i < Traits::kRun; ++i) {
            const int tap = column - i;
            if (tap >= 0 && tap < kSide) {
              sums[i][lane] +=
                  feature * weight[(lane * kSide + row) * kSide + tap];
            }
          }
        }
      }
    }
  } else {
    static_assert(kVec == 1 && Traits::kRun == 1);
    const int64_t taps = s.kernel_h * s.kernel_w;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t from_y = y + tap / s.kernel_w - s.kernel_h / 2;
      const int64_t from_x = x + tap % s.kernel_w - s.kernel_w / 2;
      if (from_y >= 0 && from_y < height && from_x >= 0 && from_x < width) {
        sums[0][0] += static_cast<acc_t>(
                          image[(from_y * s.width + from_x) * s.channels]) *
                      static_cast<acc_t>(p.weight[channel * taps + tap]);
      }
    }
  }
}

// Write kVec numbers, to a multiple of kVec numbers, in stores of 16 bytes.
template <int kVec, typename acc_t>
__device__ inline void store_wide(const acc_t (&values)[kVec], acc_t* target) {
  constexpr int kMost = 16 / sizeof(acc_t);
  constexpr int kWidth = kVec < kMost ? kVec : kMost;
#pragma unroll
  for (int i = 0; i < kVec; i += kWidth) {
    Vector<acc_t, kWidth> part;
#pragma unroll
    for (int lane = 0; lane < kWidth; ++lane) {
      part.lanes[lane] = values[i + lane];
    }
    *reinterpret_cast<Vector<acc_t, kWidth>*>(target + i) = part;
  }
}

template <typename acc_t>
__device__ inline acc_t gelu(acc_t x) {
  return static_cast<acc_t>(0.5) * x *
         (1 + std::erf(x * static_cast<acc_t>(0.70710678118654752)));
}

// A block convolves a tile of pixels in all channels and leaves the sums in
// shared memory, in the accumulator's precision. Then a team of neighbouring
// threads takes a pixel, finds mean and variance of its channels
// one after the other (their difference of squares would cancel), and writes
// each output once.
template <typename Traits>
__global__ void __launch_bounds__(Traits::kBlockSize, 2) branch_kernel(
    BranchSizes s,
    BranchTiles tiles,
    BranchPointers<typename Traits::scalar_t, typename Traits::param_t> p) {
  using acc_t = typename Traits::acc_t;
  constexpr int kVec = Traits::kVec;
  auto* convolved = shared_memory_as<acc_t>();
  const int32_t vectors = static_cast<int32_t>(tiles.vectors.size());
  const int32_t pixels = static_cast<int32_t>(tiles.pixels);

  const Quotient<int32_t> by_across =
      tiles.across.divide(static_cast<int32_t>(blockIdx.x));
  const Quotient<int32_t> by_down = tiles.down.divide(by_across.quotient);
  const int64_t n = by_down.quotient;
  const int32_t top = by_down.remainder * static_cast<int32_t>(tiles.rows);
  const int32_t left =
      by_across.remainder * static_cast<int32_t>(tiles.columns.size());

  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t items = pixels / Traits::kRun * vectors;
  for (int32_t item = thread; item < items; item += Traits::kBlockSize) {
    const Quotient<int32_t> by_vectors = tiles.vectors.divide(item);
    const Quotient<int32_t> by_runs =
        tiles.row_runs.divide(by_vectors.quotient);
    const int32_t y = top + by_runs.quotient;
    const int32_t x = left + by_runs.remainder * Traits::kRun;
    if (y < s.height && x < s.width) {
      const int32_t channel = by_vectors.remainder * kVec;
      acc_t sums[Traits::kRun][kVec];
      convolve_run<Traits>(s, p, n, y, x, channel, sums);
      const int32_t first = by_vectors.quotient * Traits::kRun;
#pragma unroll
      for (int i = 0; i < Traits::kRun; ++i) {
        // Counted in vectors: by channels, the compiler loses the alignment.
        const int32_t vector = (first + i) * vectors + by_vectors.remainder;
        store_wide<kVec>(sums[i], convolved + vector * kVec);
      }
    }
  }
  __syncthreads();

  const int32_t team = tiles.team;
  const int32_t lane_in_team = thread & (team - 1);
  const int32_t teams = Traits::kBlockSize / team;
  const acc_t share = 1 / static_cast<acc_t>(s.channels);
  // As many turns for all threads, as they meet in the sums of a team.
  for (int32_t base = 0; base < pixels; base += teams) {
    const int32_t pixel = base + thread / team;
    const Quotient<int32_t> by_columns = tiles.columns.divide(pixel);
    const int32_t y = top + by_columns.quotient;
    const int32_t x = left + by_columns.remainder;
    const bool active = pixel < pixels && y < s.height && x < s.width;
    const acc_t* values = convolved + static_cast<int64_t>(pixel) * s.channels;
    const int32_t end = active ? vectors : 0;
    acc_t parts[kVec];
    acc_t total = 0;
    for (int32_t i = lane_in_team; i < end; i += team) {
      load_widened<kVec>(values + i * kVec, parts);
#pragma unroll
      for (int lane = 0; lane < kVec; ++lane) {
        total += parts[lane];
      }
    }
    const acc_t mean = team_sum(total, team) * share;
    acc_t squares = 0;
    for (int32_t i = lane_in_team; i < end; i += team) {
      load_widened<kVec>(values + i * kVec, parts);
#pragma unroll
      for (int lane = 0; lane < kVec; ++lane) {
        squares += (parts[lane] - mean) * (parts[lane] - mean);
      }
    }
    const acc_t variance = team_sum(squares, team) * share;
    const acc_t factor = 1 / std::sqrt(variance + static_cast<acc_t>(s.eps));
    auto* output = p.output + ((n * s.height + y) * s.width + x) * s.channels;
    for (int32_t i = lane_in_team; i < end; i += team) {
      load_widened<kVec>(values + i * kVec, parts);
      acc_t scale[kVec];
      acc_t shift[kVec];
      load_widened<kVec>(p.norm_weight + i * kVec, scale);
      load_widened<kVec>(p.norm_bias + i * kVec, shift);
      Vector<typename Traits::scalar_t, kVec> result;
#pragma unroll
      for (int lane = 0; lane < kVec; ++lane) {
        const acc_t normalized = (parts[lane] - mean) * factor;
        result.lanes[lane] = static_cast<typename Traits::scalar_t>(
            gelu(normalized * scale[lane] + shift[lane]));
      }
      *reinterpret_cast<decltype(result)*>(output + i * kVec) = result;
    }
  }
}

// Call launch.template run<Traits>() for the most special kernel that fits the
// call; return false where none does.
template <typename scalar_t, typename param_t, typename Launch>
bool dispatch_branch(const BranchSizes& s, const Launch& launch) {
  constexpr int kWide = 16 / sizeof(scalar_t);
  // Half as many channels, as the weights of 5 x 5 fill the registers.
  constexpr int kHalf = kWide / 2;
  using Three = BranchTraits<scalar_t, param_t, 3, kWide, 4>;
  using Five = BranchTraits<scalar_t, param_t, 5, kHalf, 4>;
  using FiveOfMany = BranchTraits<scalar_t, param_t, 5, kHalf, 1>;
  using Any = BranchTraits<scalar_t, param_t, 0, 1, 1>;
  if (Three::fits(s)) {
    launch.template run<Three>();
  } else if (Five::fits(s)) {
    launch.template run<Five>();
  } else if (FiveOfMany::fits(s)) {
    launch.template run<FiveOfMany>();
  } else if (Any::fits(s)) {
    launch.template run<Any>();
  } else {
    return false;
  }
  return true;
}

}  // namespace dcnv3
