// SPDX-License-Identifier: Apache-2.0
// DCNv3 on the CPU: spread the work over threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <tuple>
#include <vector>

#include "capability.h"
#include "checks_cpu.h"
#include "kernels.h"

namespace dcnv3 {
namespace {

std::string cpu_capability() {
  switch (capability()) {
    case Capability::kAvx512:
      return "avx512";
    case Capability::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

struct LaunchForward {
  const Geometry& g;
  const Tensor& input;
  const Tensor& offset;
  const Tensor& mask;
  Tensor& output;

  template <typename scalar_t, typename point_t>
  void operator()() const {
    const ForwardPointers<scalar_t, point_t> pointers{
        static_cast<const scalar_t*>(input.const_data_ptr()),
        static_cast<const point_t*>(offset.const_data_ptr()),
        static_cast<const point_t*>(mask.const_data_ptr()),
        static_cast<scalar_t*>(output.mutable_data_ptr())};
    const auto kernel = DCNV3_BEST_KERNEL(forward<scalar_t, point_t>);
    const int64_t points = g.groups * g.points();
    torch::stable::parallel_for(
        0,
        g.out_pixels(),
        forward_grain(g),
        [&](int64_t begin, int64_t end) {
          ForwardPointers<scalar_t, point_t> part = pointers;
          part.offset += begin * 2 * points;
          part.mask += begin * points;
          part.output += begin * g.channels();
          kernel(g, part, begin, end);
        });
  }
};

struct LaunchBackward {
  const Geometry& g;
  const Tensor& input;
  const Tensor& offset;
  const Tensor& mask;
  const Tensor& grad_output;
  Tensor& grad_input;
  Tensor& grad_offset;
  Tensor& grad_mask;

  template <typename scalar_t, typename point_t>
  void operator()() const {
    const BackwardPointers<scalar_t, point_t> pointers{
        static_cast<const scalar_t*>(input.const_data_ptr()),
        static_cast<const point_t*>(offset.const_data_ptr()),
        static_cast<const point_t*>(mask.const_data_ptr()),
        static_cast<const scalar_t*>(grad_output.const_data_ptr()),
        static_cast<scalar_t*>(grad_input.mutable_data_ptr()),
        static_cast<point_t*>(grad_offset.mutable_data_ptr()),
        static_cast<point_t*>(grad_mask.mutable_data_ptr())};
    const auto kernel = DCNV3_BEST_KERNEL(backward<scalar_t, point_t>);
    torch::stable::parallel_for(
        0,
        g.batch * g.groups,
        grain_size(g.out_height * g.out_width * g.group_channels * g.points()),
        [&](int64_t begin, int64_t end) { kernel(g, pointers, begin, end); });
  }
};

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
    bool softmax) {
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
       remove_center,
       softmax});
  check_sides(input, g);
  Tensor output = torch::stable::new_empty(
      input,
      {g.batch, g.out_height, g.out_width, g.channels()});
  dispatch_dtypes(
      input.scalar_type(),
      offset.scalar_type(),
      LaunchForward{g, dense(input), dense(offset), dense(mask), output});
  return output;
}

std::tuple<Tensor, Tensor, Tensor> dcnv3_backward_cpu(
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
    bool remove_center,
    bool softmax) {
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
       remove_center,
       softmax});
  check_grad_output(grad_output, input, g);
  check_sides(input, g);
  Tensor grad_input = torch::stable::new_empty(input, input.sizes());
  Tensor grad_offset = torch::stable::new_empty(offset, offset.sizes());
  Tensor grad_mask = torch::stable::new_empty(mask, mask.sizes());
  dispatch_dtypes(
      input.scalar_type(),
      offset.scalar_type(),
      LaunchBackward{
          g,
          dense(input),
          dense(offset),
          dense(mask),
          dense(grad_output),
          grad_input,
          grad_offset,
          grad_mask});
  return {grad_input, grad_offset, grad_mask};
}

}  // namespace
}  // namespace dcnv3

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CPU, m) {
  m.impl("dcnv3_forward", TORCH_BOX(&dcnv3::dcnv3_forward_cpu));
  m.impl("dcnv3_backward", TORCH_BOX(&dcnv3::dcnv3_backward_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&dcnv3::cpu_capability));
}
