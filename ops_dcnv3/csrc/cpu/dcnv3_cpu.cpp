// SPDX-License-Identifier: Apache-2.0
// The operators on the CPU: choose the instruction set, spread the work over
// threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "kernels.h"

namespace dcnv3 {
namespace {

enum class Capability { kBaseline, kAvx2, kAvx512 };

// The best instruction set of this machine. ATEN_CPU_CAPABILITY (default, avx2
// or avx512), PyTorch's own switch for its kernels, can lower it.
Capability find_capability() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");
  const char* setting = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string limit = setting ? setting : "avx512";
  if (limit == "default" || !has_avx2) {
    return Capability::kBaseline;
  }
  return limit == "avx2" || !has_avx512 ? Capability::kAvx2
                                        : Capability::kAvx512;
#else
  return Capability::kBaseline;
#endif
}

Capability capability() {
  static const Capability found = find_capability();
  return found;
}

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

// Items a thread takes at least, so that a task is worth its start (about 10 us
// at a few multiply-adds per nanosecond).
int64_t grain_size(int64_t work_per_item) {
  constexpr int64_t kWorkPerTask = 32768;
  return std::max<int64_t>(
      1,
      kWorkPerTask / std::max<int64_t>(1, work_per_item));
}

template <typename scalar_t, typename point_t>
auto forward_kernel() {
#if defined(__x86_64__)
  if (capability() == Capability::kAvx512) {
    return &avx512::forward<scalar_t, point_t>;
  }
  if (capability() == Capability::kAvx2) {
    return &avx2::forward<scalar_t, point_t>;
  }
#endif
  return &baseline::forward<scalar_t, point_t>;
}

template <typename scalar_t, typename point_t>
auto backward_kernel() {
#if defined(__x86_64__)
  if (capability() == Capability::kAvx512) {
    return &avx512::backward<scalar_t, point_t>;
  }
  if (capability() == Capability::kAvx2) {
    return &avx2::backward<scalar_t, point_t>;
  }
#endif
  return &baseline::backward<scalar_t, point_t>;
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
    const auto kernel = forward_kernel<scalar_t, point_t>();
    torch::stable::parallel_for(
        0,
        g.batch * g.out_height,
        grain_size(g.out_width * g.channels() * g.points()),
        [&](int64_t begin, int64_t end) { kernel(g, pointers, begin, end); });
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
    const auto kernel = backward_kernel<scalar_t, point_t>();
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
  Tensor output = torch::stable::new_empty(
      input,
      {g.batch, g.out_height, g.out_width, g.channels()});
  dispatch_dtypes(
      input.scalar_type(),
      offset.scalar_type(),
      LaunchForward{
          g,
          torch::stable::contiguous(input),
          torch::stable::contiguous(offset),
          torch::stable::contiguous(mask),
          output});
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
  Tensor grad_input = torch::stable::new_zeros(input, input.sizes());
  Tensor grad_offset = torch::stable::new_empty(offset, offset.sizes());
  Tensor grad_mask = torch::stable::new_empty(mask, mask.sizes());
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
