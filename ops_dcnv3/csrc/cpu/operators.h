// SPDX-License-Identifier: Apache-2.0
// The operators of the CPU library, for those made of others.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "../checks.h"

namespace dcnv3 {

Tensor sample_cpu(
    const Tensor& input,
    const Tensor& offset,
    const Tensor& mask,
    const Settings& settings);

Tensor branch_forward_cpu(
    const Tensor& input,
    const Tensor& weight,
    const Tensor& bias,
    const Tensor& norm_weight,
    const Tensor& norm_bias,
    double eps);

}  // namespace dcnv3
