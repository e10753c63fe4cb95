// SPDX-License-Identifier: Apache-2.0
// Body of the kernels of DCNv3's depthwise branch and of LayerNorm on the CPU.
// Included, as vectors.h, after the instruction set is chosen.
#pragma once

#include "vectors.h"

namespace dcnv3 {
namespace DCNV3_CAPABILITY {

// Convolve `count` neighbouring pixels of a row, all channels, into sums. The
// taps that fall into the image are the same for all of them.
template <int count, typename scalar_t, typename acc_t>
inline void convolve(
    const BranchSizes& s,
    const scalar_t* image,
    const acc_t* weight,
    const acc_t* bias,
    int64_t y,
    int64_t x,
    int64_t first_tap,
    int64_t end_tap,
    acc_t* sums) {
  constexpr int lanes = kLanes<acc_t>;
  const int64_t top = s.kernel_h / 2 - y;
  const int64_t first_row = top > 0 ? top : 0;
  const int64_t below = s.height + top;
  const int64_t end_row = below < s.kernel_h ? below : s.kernel_h;
  const auto block = [&](int64_t channel, const auto& load_features) {
    Lanes<acc_t> parts[count];
    for (int i = 0; i < count; ++i) {
      parts[i] = load(bias + channel);
    }
    for (int64_t row = first_row; row < end_row; ++row) {
      const scalar_t* line =
          image +
          ((y + row - s.kernel_h / 2) * s.width + x - s.kernel_w / 2) *
              s.channels +
          channel;
      const acc_t* factors =
          weight + row * s.kernel_w * padded(s.channels) + channel;
      for (int64_t tap = first_tap; tap < end_tap; ++tap) {
        const auto factor = load(factors + tap * padded(s.channels));
        for (int i = 0; i < count; ++i) {
          parts[i] += factor * load_features(line + (tap + i) * s.channels);
        }
      }
    }
    for (int i = 0; i < count; ++i) {
      store<acc_t>(sums + i * padded(s.channels) + channel, parts[i]);
    }
  };
  const int64_t whole = s.channels / lanes * lanes;
  for (int64_t channel = 0; channel < whole; channel += lanes) {
    block(channel, [](const scalar_t* source) { return load(source); });
  }
  if (whole < s.channels) {
    block(whole, [&](const scalar_t* source) {
      return load_some<acc_t>(source, s.channels - whole);
    });
  }
}

// Normalise the channels of a pixel, and store finish(result, channel, left) of
// each register of them. Sums and parameters are padded.
template <typename scalar_t, typename acc_t, typename Finish>
inline void normalize(
    int64_t channels,
    double eps,
    const acc_t* norm_weight,
    const acc_t* norm_bias,
    const acc_t* sums,
    scalar_t* output,
    const Finish& finish) {
  constexpr int lanes = kLanes<acc_t>;
  // Beyond the last channel are zeros.
  Lanes<acc_t> total = {};
  for (int64_t channel = 0; channel < channels; channel += lanes) {
    total += load(sums + channel);
  }
  const acc_t mean = sum_lanes<acc_t>(total) / channels;
  Lanes<acc_t> squares = {};
  int64_t channel = 0;
  for (; channel + lanes <= channels; channel += lanes) {
    const auto distance = load(sums + channel) - mean;
    squares += distance * distance;
  }
  acc_t square = sum_lanes<acc_t>(squares);
  for (; channel < channels; ++channel) {
    square += (sums[channel] - mean) * (sums[channel] - mean);
  }
  const acc_t factor =
      1 / square_root(square / channels + static_cast<acc_t>(eps));
  for (channel = 0; channel < channels; channel += lanes) {
    const Lanes<acc_t> x =
        (load(sums + channel) - mean) * factor * load(norm_weight + channel) +
        load(norm_bias + channel);
    const int64_t left = channels - channel;
    const Lanes<acc_t> result = finish(x, channel, left);
    if constexpr (sizeof(scalar_t) == sizeof(acc_t)) {
      store_up_to<acc_t>(output + channel, result, left);
    } else {
      for (int i = 0; i < (left < lanes ? left : lanes); ++i) {
        output[channel + i] = static_cast<scalar_t>(result[i]);
      }
    }
  }
}

template <typename scalar_t>
void branch(
    const BranchSizes& s,
    const BranchPointers<scalar_t>& p,
    int64_t begin,
    int64_t end) {
  using acc_t = typename Accumulator<scalar_t>::type;
  constexpr int kPixels =
      4;  // at once, so that a weight is loaded once for all
  const int64_t size = padded(s.channels);
  const int64_t taps = s.kernel_h * s.kernel_w;
  // Parameters by tap and widened, with zeros beyond the last channel.
  Scratch<acc_t> parameters((taps + 3) * size);
  Scratch<acc_t> sums(kPixels * size);
  parameters.zero();
  acc_t* const weight = parameters.data();
  acc_t* const bias = weight + taps * size;
  acc_t* const norm_weight = bias + size;
  acc_t* const norm_bias = norm_weight + size;
  for (int64_t channel = 0; channel < s.channels; ++channel) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      weight[tap * size + channel] =
          static_cast<acc_t>(p.weight[channel * taps + tap]);
    }
    bias[channel] = static_cast<acc_t>(p.bias[channel]);
    norm_weight[channel] = static_cast<acc_t>(p.norm_weight[channel]);
    norm_bias[channel] = static_cast<acc_t>(p.norm_bias[channel]);
  }

  const int64_t border = s.kernel_w / 2;
  for (int64_t pixel = begin, count; pixel < end; pixel += count) {
    const int64_t x = pixel % s.width;
    const int64_t row = pixel / s.width;
    const int64_t y = row % s.height;
    const scalar_t* image =
        p.input + row / s.height * s.height * s.width * s.channels;
    if (x >= border && x + kPixels + border <= s.width &&
        pixel + kPixels <= end) {
      count = kPixels;
      convolve<
          kPixels>(s, image, weight, bias, y, x, 0, s.kernel_w, sums.data());
    } else {
      count = 1;
      const int64_t before = border - x;
      const int64_t after = s.width - x + border;
      convolve<1>(
          s,
          image,
          weight,
          bias,
          y,
          x,
          before > 0 ? before : 0,
          after < s.kernel_w ? after : s.kernel_w,
          sums.data());
    }
    for (int64_t i = 0; i < count; ++i) {
      normalize(
          s.channels,
          s.eps,
          norm_weight,
          norm_bias,
          sums.data() + i * size,
          p.output + (pixel - begin + i) * s.channels,
          [](Lanes<acc_t> x, int64_t, int64_t) { return gelu_of<acc_t>(x); });
    }
  }
}

void norm(
    const NormSizes& s,
    const NormPointers& p,
    int64_t begin,
    int64_t end) {
  const int64_t size = padded(s.channels);
  Scratch<float> scratch(3 * size);
  scratch.zero();
  float* const weight = scratch.data();
  float* const bias = weight + size;
  float* const row = bias + size;
  const int64_t bytes = s.channels * sizeof(float);
  __builtin_memcpy(weight, p.weight, bytes);
  __builtin_memcpy(bias, p.bias, bytes);
  for (int64_t i = begin; i < end; ++i) {
    const float* source = p.input + i * s.channels;
    if (size != s.channels) {
      __builtin_memcpy(row, source, bytes);
      source = row;
    }
    Ending ending = p.ending;
    if (ending.added) {
      ending.added += i * s.channels;
    }
    normalize(
        s.channels,
        s.eps,
        weight,
        bias,
        source,
        p.output + i * s.channels,
        [&](Lanes<float> x, int64_t channel, int64_t left) {
          return ended(x, ending, channel, left);
        });
  }
}

#define DCNV3_INSTANTIATE(scalar_t)    \
  template void branch(                \
      const BranchSizes&,              \
      const BranchPointers<scalar_t>&, \
      int64_t,                         \
      int64_t);
DCNV3_FOR_EACH_FEATURES(DCNV3_INSTANTIATE)
#undef DCNV3_INSTANTIATE

}  // namespace DCNV3_CAPABILITY
}  // namespace dcnv3
