// SPDX-License-Identifier: Apache-2.0
// DCNv3's depthwise branch on the CPU: check, and spread the work over threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../checks.h"
#include "capability.h"
#include "kernels.h"

namespace dcnv3 {
namespace {

template <typename scalar_t>
void launch_branch(
    const BranchSizes& sizes,
    int64_t pixels,
    const std::vector<Tensor>& inputs,
    Tensor& output) {
  const auto pointer = [&](int index) {
    return static_cast<const scalar_t*>(inputs[index].const_data_ptr());
  };
  const BranchPointers<scalar_t> pointers{
      pointer(0),
      pointer(1),
      pointer(2),
      pointer(3),
      pointer(4),
      static_cast<scalar_t*>(output.mutable_data_ptr())};
  const auto kernel = DCNV3_BEST_KERNEL(branch<scalar_t>);
  torch::stable::parallel_for(
      0,
      pixels,
      branch_grain(sizes),
      [&](int64_t begin, int64_t end) {
        BranchPointers<scalar_t> part = pointers;
        part.output += begin * sizes.channels;
        kernel(sizes, part, begin, end);
      });
}

Tensor branch_forward_cpu(
    const Tensor& input,
    const Tensor& weight,
    const Tensor& bias,
    const Tensor& norm_weight,
    const Tensor& norm_bias,
    double eps) {
  const BranchSizes sizes =
      make_branch_sizes(input, weight, bias, norm_weight, norm_bias, eps);
  check_same_kind("weight", weight, "input", input);
  std::vector<Tensor> inputs;
  for (const Tensor* tensor :
       {&input, &weight, &bias, &norm_weight, &norm_bias}) {
    inputs.push_back(dense(*tensor));
  }
  const int64_t pixels = sizes.batch * sizes.height * sizes.width;
  Tensor output = torch::stable::new_empty(inputs[0], inputs[0].sizes());
  switch (input.scalar_type()) {
    case ScalarType::Double:
      launch_branch<double>(sizes, pixels, inputs, output);
      break;
    case ScalarType::Float:
      launch_branch<float>(sizes, pixels, inputs, output);
      break;
    case ScalarType::Half:
      launch_branch<c10::Half>(sizes, pixels, inputs, output);
      break;
    case ScalarType::BFloat16:
      launch_branch<c10::BFloat16>(sizes, pixels, inputs, output);
      break;
    default:
      DCNV3_CHECK(
          false,
          "input: expected float64, float32, bfloat16 or float16, got ",
          input.scalar_type());
  }
  return output;
}

}  // namespace
}  // namespace dcnv3

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CPU, m) {
  m.impl("branch_forward", TORCH_BOX(&dcnv3::branch_forward_cpu));
}
