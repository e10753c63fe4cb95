// SPDX-License-Identifier: Apache-2.0
// Body of the kernel of the centre feature scale on the CPU. Included, as
// vectors.h, after the instruction set is chosen.
#pragma once

#include "vectors.h"

namespace dcnv3 {
namespace DCNV3_CAPABILITY {

// out = out * (1 - w) + projected * w, with w the sigmoid of a group's logit.
void center(
    const CenterSizes& s,
    const CenterPointers& p,
    int64_t begin,
    int64_t end) {
  constexpr int lanes = kLanes<float>;
  Scratch<float> weights(padded(s.groups));
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const float* const logits = p.logits + pixel * s.groups;
    for (int64_t group = 0; group < s.groups; group += lanes) {
      const auto x = load_up_to<float>(logits + group, s.groups - group);
      // exp_of is for up to 88; beyond, the weight is 0 to float's precision.
      const auto weight = 1.0f / (1.0f + exp_of(clamped<float>(-x, 88.0f)));
      store<float>(weights.data() + group, weight);
    }
    for (int64_t group = 0; group < s.groups; ++group) {
      const auto weight = fill<float>(weights.data()[group]);
      const int64_t at = (pixel * s.groups + group) * s.group_channels;
      for (int64_t i = 0; i < s.group_channels; i += lanes) {
        const int64_t left = s.group_channels - i;
        const auto out = load_up_to<float>(p.output + at + i, left);
        const auto mixed_in = load_up_to<float>(p.projected + at + i, left);
        const auto mixed = out * (1.0f - weight) + mixed_in * weight;
        store_up_to<float>(p.output + at + i, mixed, left);
      }
    }
  }
}

}  // namespace DCNV3_CAPABILITY
}  // namespace dcnv3
