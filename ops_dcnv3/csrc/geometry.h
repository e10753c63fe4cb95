// SPDX-License-Identifier: Apache-2.0
// The sizes of one call, filled and checked once, then passed by value to every
// kernel. Includes nothing of PyTorch, so that kernels can be compiled alone.
#pragma once

#include <cstdint>

// On the host always inlined: an out-of-line copy would be compiled for one
// instruction set and might be called on a machine that lacks it.
#if defined(__CUDACC__)
#define DCNV3_HOST_DEVICE __host__ __device__ inline
#elif defined(__GNUC__)
#define DCNV3_HOST_DEVICE __attribute__((always_inline)) inline
#else
#define DCNV3_HOST_DEVICE inline
#endif

namespace dcnv3 {

// Legend: N batch, H W input, Ho Wo output, G groups, D channels of a group,
// P sampling points of a group. Tensors are contiguous:
//   input, grad_input     (N, H, W, G, D)
//   output, grad_output   (N, Ho, Wo, G, D)
//   offset, grad_offset   (N, Ho, Wo, G, P, 2)  pairs are (x, y)
//   mask, grad_mask       (N, Ho, Wo, G, P)
// Points run x-outer, y-inner (fixed by the released weights).
struct Geometry {
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t out_height;
  int64_t out_width;
  int64_t groups;
  int64_t group_channels;
  int32_t kernel_h;
  int32_t kernel_w;
  int64_t stride_h;
  int64_t stride_w;
  int64_t pad_h;
  int64_t pad_w;
  int64_t dilation_h;
  int64_t dilation_w;
  double offset_scale;
  bool remove_center;
  // Whether `mask` holds logits, which a softmax over a group's points turns
  // into weights.
  bool softmax;

  DCNV3_HOST_DEVICE int32_t points() const {
    return kernel_h * kernel_w - (remove_center ? 1 : 0);
  }
  DCNV3_HOST_DEVICE int64_t channels() const { return groups * group_channels; }
  DCNV3_HOST_DEVICE int64_t out_pixels() const {
    return batch * out_height * out_width;
  }
  DCNV3_HOST_DEVICE bool is_removed(int32_t tap_h, int32_t tap_w) const {
    return remove_center && tap_h == kernel_h / 2 && tap_w == kernel_w / 2;
  }
};

// The sizes of a depthwise convolution that keeps the size of a (N, H, W, C)
// map, with a LayerNorm over channels and a GELU. The kernel's sides are odd.
struct BranchSizes {
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t channels;
  int64_t kernel_h;
  int64_t kernel_w;
  double eps;
};

// The sizes of a LayerNorm over the last dimension.
struct NormSizes {
  int64_t channels;
  double eps;
};

// The sizes of a mixture of the centre, which has a weight for each group.
struct CenterSizes {
  int64_t groups;
  int64_t group_channels;
};

// The sizes of a linear layer: weight is (out_features, in_features).
struct LinearSizes {
  int64_t rows;
  int64_t in_features;
  int64_t out_features;
  bool gelu;
};

}  // namespace dcnv3
