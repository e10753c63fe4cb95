// SPDX-License-Identifier: Apache-2.0
// The operators of the CPU library, for those made of others.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "../checks.h"

namespace dcnv3 {

Tensor dcnv3_forward_cpu(
    const Tensor& input,
    const Tensor& offset,
    const Tensor& mask,
    const std::vector<int64_t>& kernel_size,
    const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation,
    int64_t groups,
    double offset_scale,
    bool remove_center,
    bool softmax);

Tensor branch_forward_cpu(
    const Tensor& input,
    const Tensor& weight,
    const Tensor& bias,
    const Tensor& norm_weight,
    const Tensor& norm_bias,
    double eps);

}  // namespace dcnv3
