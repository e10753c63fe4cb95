// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "backward.cuh"
#include "dispatch.cuh"
#include "gather.cuh"
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
  bool deterministic;
  cudaStream_t stream;

  template <typename scalar_t, typename point_t>
  void operator()() const {
    dispatch_taps<BackwardTraits, scalar_t, point_t>(g, *this);
    if (deterministic) {
      gather<scalar_t, point_t>();
    }
  }

  template <typename Traits>
  void run() const {
    using scalar_t = typename Traits::scalar_t;
    using point_t = typename Traits::point_t;
    using acc_t = typename Traits::acc_t;
    const BackwardPointers<scalar_t, point_t> pointers{
        static_cast<const scalar_t*>(input.const_data_ptr()),
        static_cast<const point_t*>(offset.const_data_ptr()),
        static_cast<const point_t*>(mask.const_data_ptr()),
        static_cast<const scalar_t*>(grad_output.const_data_ptr()),
        deterministic ? nullptr
                      : static_cast<acc_t*>(grad_input.mutable_data_ptr()),
        static_cast<point_t*>(grad_offset.mutable_data_ptr()),
        static_cast<point_t*>(grad_mask.mutable_data_ptr())};
    const SiteOrder order = Traits::order(g);
    backward_kernel<Traits>
        <<<grid_size(order.sites, Traits::kBlockSize / order.team),
           Traits::kBlockSize,
           Traits::shared_bytes(order),
           stream>>>(
            g,
            order,
            pointers,
            TapShifts<acc_t, typename Traits::Taps>(g));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  template <typename scalar_t, typename point_t>
  void gather() const {
    using acc_t = typename Accumulator<scalar_t>::type;
    const GatherPointers<scalar_t, point_t> pointers{
        static_cast<const point_t*>(offset.const_data_ptr()),
        static_cast<const point_t*>(mask.const_data_ptr()),
        static_cast<const scalar_t*>(grad_output.const_data_ptr()),
        static_cast<scalar_t*>(grad_input.mutable_data_ptr())};
    const Tiles<acc_t> tiles(g);
    gather_kernel<scalar_t, point_t, acc_t>
        <<<grid_size(tiles.blocks, 1),
           Tiles<acc_t>::kBlockSize,
           sizeof(GatherShared<acc_t>),
           stream>>>(g, tiles, pointers, TapShifts<acc_t, AnyTaps>(g));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

std::tuple<Tensor, Tensor, Tensor> run_backward(
    const Tensor& grad_output,
    const Tensor& input,
    const Tensor& offset,
    const Tensor& mask,
    const Settings& settings,
    bool deterministic) {
  const Geometry g = make_geometry(input, offset, mask, settings);
  check_grad_output(grad_output, input, g);
  const LaunchContext context(input);
  // Atomic sums in half precision would lose small terms: sum in float, round
  // once. The deterministic kernel sums on chip and writes the result itself.
  const ScalarType type = input.scalar_type();
  const ScalarType sum_type =
      deterministic || type == ScalarType::Double ? type : ScalarType::Float;
  Tensor grad_input =
      deterministic ? torch::stable::new_empty(input, input.sizes())
                    : torch::stable::new_zeros(input, input.sizes(), sum_type);
  Tensor grad_offset = torch::stable::new_empty(offset, offset.sizes());
  Tensor grad_mask = torch::stable::new_empty(mask, mask.sizes());
  if (g.batch > 0) {
    dispatch_dtypes(
        type,
        offset.scalar_type(),
        LaunchBackward{
            g,
            to_dense(input),
            to_dense(offset),
            to_dense(mask),
            to_dense(grad_output),
            grad_input,
            grad_offset,
            grad_mask,
            deterministic,
            context.stream()});
  }
  if (sum_type != type) {
    grad_input = torch::stable::to(grad_input, type);
  }
  return {grad_input, grad_offset, grad_mask};
}

template <bool kDeterministic>
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
    bool remove_center,
    bool softmax) {
  return run_backward(
      grad_output,
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
       softmax},
      kDeterministic);
}

}  // namespace
}  // namespace dcnv3

// Declared here and not in bindings.cpp, as only CUDA has it: the CPU's sums
// are always in the same order.
STABLE_TORCH_LIBRARY_FRAGMENT(ops_dcnv3, m) {
  m.def(
      "dcnv3_backward_deterministic(Tensor grad_output, Tensor input, "
      "Tensor offset, Tensor mask, int[] kernel_size, int[] stride, "
      "int[] padding, int[] dilation, int groups, float offset_scale, "
      "bool remove_center, bool softmax=False) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CUDA, m) {
  m.impl("dcnv3_backward", TORCH_BOX(&dcnv3::dcnv3_backward_cuda<false>));
  m.impl(
      "dcnv3_backward_deterministic",
      TORCH_BOX(&dcnv3::dcnv3_backward_cuda<true>));
}
