// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "kernels.cuh"
#include "launch.cuh"

namespace dcnv3 {
namespace {

struct LaunchBackward {
  const Geometry& g;
  const Tensor& input;
  const Tensor& offset;
  const Tensor& mask;
  const Tensor& grad_output;
  Tensor& grad_input;
  Tensor& grad_offset;
  Tensor& grad_mask;
  cudaStream_t stream;

  template <typename scalar_t, typename point_t>
  void operator()() const {
    using Pointers = BackwardPointers<scalar_t, point_t>;
    const Pointers pointers{
        static_cast<const scalar_t*>(input.const_data_ptr()),
        static_cast<const point_t*>(offset.const_data_ptr()),
        static_cast<const point_t*>(mask.const_data_ptr()),
        static_cast<const scalar_t*>(grad_output.const_data_ptr()),
        static_cast<typename Pointers::acc_t*>(grad_input.mutable_data_ptr()),
        static_cast<point_t*>(grad_offset.mutable_data_ptr()),
        static_cast<point_t*>(grad_mask.mutable_data_ptr())};
    int team = 1;
    while (team < 32 && team < g.group_channels) {
      team *= 2;
    }
    backward_kernel<scalar_t, point_t>
        <<<grid_size(g.out_pixels() * g.groups, kBlockSize / team),
           kBlockSize,
           0,
           stream>>>(g, pointers, team);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

std::tuple<Tensor, Tensor, Tensor> dcnv3_backward_cuda(
    const Tensor& grad_output,
    const Tensor& input,
    const Tensor& offset,
    const Tensor& mask,
    const std::vector<int64_t>& kernel_size,
    const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation,
    int64_t groups,
    double offset_scale,
    bool remove_center) {
  const Geometry g = make_geometry(
      input,
      offset,
      mask,
      {kernel_size,
       stride,
       padding,
       dilation,
       groups,
       offset_scale,
       remove_center});
  check_grad_output(grad_output, input, g);
  const LaunchContext context(input);
  // Atomic sums in half precision would lose small terms: sum in float, round
  // once.
  const ScalarType sum_type = input.scalar_type() == ScalarType::Double
                                  ? ScalarType::Double
                                  : ScalarType::Float;
  Tensor grad_input = torch::stable::new_zeros(input, input.sizes(), sum_type);
  Tensor grad_offset = torch::stable::new_empty(offset, offset.sizes());
  Tensor grad_mask = torch::stable::new_empty(mask, mask.sizes());
  if (g.batch > 0) {
    dispatch_dtypes(
        input.scalar_type(),
        offset.scalar_type(),
        LaunchBackward{
            g,
            torch::stable::contiguous(input),
            torch::stable::contiguous(offset),
            torch::stable::contiguous(mask),
            torch::stable::contiguous(grad_output),
            grad_input,
            grad_offset,
            grad_mask,
            context.stream()});
  }
  if (sum_type != input.scalar_type()) {
    grad_input = torch::stable::to(grad_input, input.scalar_type());
  }
  return {grad_input, grad_offset, grad_mask};
}

}  // namespace
}  // namespace dcnv3

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CUDA, m) {
  m.impl("dcnv3_backward", TORCH_BOX(&dcnv3::dcnv3_backward_cuda));
}
