// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

#include "dispatch.cuh"
#include "forward.cuh"
#include "launch.cuh"

namespace dcnv3 {
namespace {

struct LaunchForward {
  const Geometry& g;
  const Tensor& input;
  const Tensor& offset;
  const Tensor& mask;
  Tensor& output;
  cudaStream_t stream;

  template <typename scalar_t, typename point_t>
  void operator()() const {
    dispatch_taps<ForwardTraits, scalar_t, point_t>(g, *this);
  }

  template <typename Traits>
  void run() const {
    using scalar_t = typename Traits::scalar_t;
    using point_t = typename Traits::point_t;
    const ForwardPointers<scalar_t, point_t> pointers{
        static_cast<const scalar_t*>(input.const_data_ptr()),
        static_cast<const point_t*>(offset.const_data_ptr()),
        static_cast<const point_t*>(mask.const_data_ptr()),
        static_cast<scalar_t*>(output.mutable_data_ptr())};
    const SiteOrder order = Traits::order(g);
    forward_kernel<Traits>
        <<<grid_size(order.sites, Traits::kBlockSize / order.team),
           Traits::kBlockSize,
           Traits::shared_bytes(order),
           stream>>>(
            g,
            order,
            pointers,
            TapShifts<typename Traits::acc_t, typename Traits::Taps>(g));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

Tensor dcnv3_forward_cuda(
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
  const LaunchContext context(input);
  Tensor output = torch::stable::new_empty(
      input,
      {g.batch, g.out_height, g.out_width, g.channels()});
  if (g.batch > 0) {
    dispatch_dtypes(
        input.scalar_type(),
        offset.scalar_type(),
        LaunchForward{
            g,
            to_dense(input),
            to_dense(offset),
            to_dense(mask),
            output,
            context.stream()});
  }
  return output;
}

#define DCNV3_TEXT_OF(...) #__VA_ARGS__
#define DCNV3_EXPANDED_TEXT_OF(...) DCNV3_TEXT_OF(__VA_ARGS__)

// The architectures that this library holds code for, such as "750,900": a
// macro of nvcc.
std::string cuda_archs() {
  return DCNV3_EXPANDED_TEXT_OF(__CUDA_ARCH_LIST__);
}

}  // namespace
}  // namespace dcnv3

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CUDA, m) {
  m.impl("dcnv3_forward", TORCH_BOX(&dcnv3::dcnv3_forward_cuda));
}

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CompositeExplicitAutograd, m) {
  m.impl("cuda_archs", TORCH_BOX(&dcnv3::cuda_archs));
}
