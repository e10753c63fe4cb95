// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels as plain functions for test_cuda_on_cpu.py.
#include "cuda_on_cpu.h"
// After it, as the kernels use what it defines.
#include "kernels.cuh"

namespace {

using namespace dcnv3;

struct Call {
  Geometry g;
  const void* input;
  const void* offset;
  const void* mask;
  const void* grad_output;  // null for a forward
  void* results[3];
  int width;  // of the vectors of a forward, of the teams of a backward
};

template <typename scalar_t, typename point_t, int kVec>
void run_forward(const Call& c) {
  const ForwardPointers<scalar_t, point_t> pointers{
      static_cast<const scalar_t*>(c.input),
      static_cast<const point_t*>(c.offset),
      static_cast<const point_t*>(c.mask),
      static_cast<scalar_t*>(c.results[0])};
  const int64_t threads =
      c.g.out_pixels() * c.g.groups * (c.g.group_channels / kVec);
  launch((threads + kBlockSize - 1) / kBlockSize, kBlockSize, [&] {
    forward_kernel<scalar_t, point_t, kVec>(c.g, pointers);
  });
}

template <typename scalar_t, typename point_t>
void run_backward(const Call& c) {
  using Pointers = BackwardPointers<scalar_t, point_t>;
  const Pointers pointers{
      static_cast<const scalar_t*>(c.input),
      static_cast<const point_t*>(c.offset),
      static_cast<const point_t*>(c.mask),
      static_cast<const scalar_t*>(c.grad_output),
      static_cast<typename Pointers::acc_t*>(c.results[0]),
      static_cast<point_t*>(c.results[1]),
      static_cast<point_t*>(c.results[2])};
  const int64_t sites = c.g.out_pixels() * c.g.groups;
  const int per_block = kBlockSize / c.width;
  launch((sites + per_block - 1) / per_block, kBlockSize, [&] {
    backward_kernel<scalar_t, point_t>(c.g, pointers, c.width);
  });
}

template <typename scalar_t, typename point_t>
void run(const Call& c) {
  if (c.grad_output) {
    run_backward<scalar_t, point_t>(c);
  } else if (c.width == 1) {
    run_forward<scalar_t, point_t, 1>(c);
  } else {
    run_forward<scalar_t, point_t, 16 / sizeof(scalar_t)>(c);
  }
}

}  // namespace

// sizes: batch, height, width, out_height, out_width, groups, group_channels
// and the (h, w) pairs of kernel, stride, padding and dilation. dtypes: 0
// float64, 1 float32, 2 float16, 3 bfloat16. Returns 0, or 1 with what is wrong
// in `error`.
extern "C" int run_on_cpu(
    const int64_t* sizes,
    double offset_scale,
    int remove_center,
    int scalar,
    int point,
    int width,
    const void* const* inputs,
    void* const* results,
    char* error) {
  Call c{};
  Geometry& g = c.g;
  g.batch = sizes[0];
  g.height = sizes[1];
  g.width = sizes[2];
  g.out_height = sizes[3];
  g.out_width = sizes[4];
  g.groups = sizes[5];
  g.group_channels = sizes[6];
  g.kernel_h = static_cast<int32_t>(sizes[7]);
  g.kernel_w = static_cast<int32_t>(sizes[8]);
  g.stride_h = sizes[9];
  g.stride_w = sizes[10];
  g.pad_h = sizes[11];
  g.pad_w = sizes[12];
  g.dilation_h = sizes[13];
  g.dilation_w = sizes[14];
  g.offset_scale = offset_scale;
  g.remove_center = remove_center != 0;
  c.input = inputs[0];
  c.offset = inputs[1];
  c.mask = inputs[2];
  c.grad_output = inputs[3];
  std::memcpy(c.results, results, sizeof(c.results));
  c.width = width;
  try {
    switch (scalar * 10 + point) {
      case 0:
        run<double, double>(c);
        break;
      case 11:
        run<float, float>(c);
        break;
      case 22:
        run<c10::Half, c10::Half>(c);
        break;
      case 21:
        run<c10::Half, float>(c);
        break;
      case 33:
        run<c10::BFloat16, c10::BFloat16>(c);
        break;
      case 31:
        run<c10::BFloat16, float>(c);
        break;
      default:
        throw std::runtime_error("these dtypes are not built");
    }
  } catch (const std::exception& caught) {
    std::strncpy(error, caught.what(), 255);
    return 1;
  }
  return 0;
}
