// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "branch.cuh"
#include "launch.cuh"

namespace dcnv3 {
namespace {

struct LaunchBranch {
  const BranchSizes& sizes;
  const Tensor& input;
  const Tensor& weight;
  const Tensor& bias;
  const Tensor& norm_weight;
  const Tensor& norm_bias;
  Tensor& output;
  cudaStream_t stream;

  template <typename scalar_t, typename param_t>
  void operator()() const {
    DCNV3_CHECK(
        (dispatch_branch<scalar_t, param_t>(sizes, *this)),
        "input: expected channels that fit into 48 KiB in the precision of the "
        "sums, got ",
        sizes.channels);
  }

  template <typename Traits>
  void run() const {
    using scalar_t = typename Traits::scalar_t;
    using param_t = typename Traits::param_t;
    const auto parameter = [](const Tensor& tensor) {
      return static_cast<const param_t*>(tensor.const_data_ptr());
    };
    const BranchPointers<scalar_t, param_t> pointers{
        static_cast<const scalar_t*>(input.const_data_ptr()),
        parameter(weight),
        parameter(bias),
        parameter(norm_weight),
        parameter(norm_bias),
        static_cast<scalar_t*>(output.mutable_data_ptr())};
    const BranchTiles tiles = BranchTiles::make<Traits>(sizes);
    branch_kernel<Traits>
        <<<grid_size(tiles.blocks, 1),
           Traits::kBlockSize,
           Traits::shared_bytes(tiles.pixels, sizes.channels),
           stream>>>(sizes, tiles, pointers);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

Tensor branch_forward_cuda(
    const Tensor& input,
    const Tensor& weight,
    const Tensor& bias,
    const Tensor& norm_weight,
    const Tensor& norm_bias,
    double eps) {
  const BranchSizes sizes =
      make_branch_sizes(input, weight, bias, norm_weight, norm_bias, eps);
  const ScalarType dtype = input.scalar_type();
  const bool is_half =
      dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
  DCNV3_CHECK(
      weight.scalar_type() == dtype ||
          (is_half && weight.scalar_type() == ScalarType::Float),
      "weight: expected the dtype of input, ",
      dtype,
      ", or in half precision float32, got ",
      weight.scalar_type());
  const LaunchContext context(input);
  Tensor output = torch::stable::new_empty(input, input.sizes());
  if (output.numel() > 0) {
    dispatch_dtypes(
        dtype,
        weight.scalar_type(),
        LaunchBranch{
            sizes,
            to_dense(input),
            to_dense(weight),
            to_dense(bias),
            to_dense(norm_weight),
            to_dense(norm_bias),
            output,
            context.stream()});
  }
  return output;
}

}  // namespace
}  // namespace dcnv3

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CUDA, m) {
  m.impl("branch_forward", TORCH_BOX(&dcnv3::branch_forward_cuda));
}
