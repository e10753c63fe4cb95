// SPDX-License-Identifier: Apache-2.0
// The CPU kernels, compiled once per instruction set (kernels_*.cpp). Each
// works on a range of independent items. capability.h chooses the instruction
// set, and the operators (*_cpu.cpp) spread the items over threads.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <new>

#include "../geometry.h"

namespace dcnv3 {

template <typename scalar_t, typename point_t>
struct ForwardPointers {
  const scalar_t* input;
  const point_t* offset;
  const point_t* mask;
  scalar_t* output;
};

template <typename scalar_t, typename point_t>
struct BackwardPointers {
  const scalar_t* input;
  const point_t* offset;
  const point_t* mask;
  const scalar_t* grad_output;
  scalar_t* grad_input;
  point_t* grad_offset;
  point_t* grad_mask;
};

// All contiguous; weight is (C, kernel_h, kernel_w), the other parameters (C,).
template <typename scalar_t>
struct BranchPointers {
  const scalar_t* input;
  const scalar_t* weight;
  const scalar_t* bias;
  const scalar_t* norm_weight;
  const scalar_t* norm_bias;
  scalar_t* output;
};

// What happens to the channels of a row at the end of a residual branch:
// factors (channels) and, row by row, the numbers to which it is added. Either
// may be null.
struct Ending {
  const float* factors = nullptr;
  const float* added = nullptr;
};

// All contiguous. The output may be the input.
struct NormPointers {
  const float* input;
  const float* weight;
  const float* bias;
  float* output;
  Ending ending = {};
};

// All contiguous: the logits of the groups' weights (pixels, G), and for
// (pixels, C) what is mixed in and what it is mixed into.
struct CenterPointers {
  const float* logits;
  const float* projected;
  float* output;
};

// Of a linear layer, (out_features, in_features).
struct Weights {
  const float* data;
  int64_t in_features;
  int64_t out_features;
};

// All contiguous. Of the layer that comes next, if there is one, the first
// weights are fetched meanwhile.
struct LinearPointers {
  const float* input;
  const float* weight;
  const float* bias;
  float* output;
  Ending ending = {};
  Weights next = {};
};

// forward and branch: an item is a pixel of the output, (n, ho, wo). What has a
// place for each of them starts with that of pixel `begin`: the output, and the
// offsets and masks.
// norm: an item is a row; center: a pixel. linear: see linear_impl.h;
// linear_items counts them.
// backward: an item is a group of an image, (n, g); its sums go to no other
// item's memory, so the result does not depend on the number of threads.
#define DCNV3_DECLARE_KERNELS(capability)                  \
  namespace capability {                                   \
  template <typename scalar_t, typename point_t>           \
  void forward(                                            \
      const Geometry& geometry,                            \
      const ForwardPointers<scalar_t, point_t>& pointers,  \
      int64_t begin,                                       \
      int64_t end);                                        \
  template <typename scalar_t, typename point_t>           \
  void backward(                                           \
      const Geometry& geometry,                            \
      const BackwardPointers<scalar_t, point_t>& pointers, \
      int64_t begin,                                       \
      int64_t end);                                        \
  template <typename scalar_t>                             \
  void branch(                                             \
      const BranchSizes& sizes,                            \
      const BranchPointers<scalar_t>& pointers,            \
      int64_t begin,                                       \
      int64_t end);                                        \
  void norm(                                               \
      const NormSizes& sizes,                              \
      const NormPointers& pointers,                        \
      int64_t begin,                                       \
      int64_t end);                                        \
  void center(                                             \
      const CenterSizes& sizes,                            \
      const CenterPointers& pointers,                      \
      int64_t begin,                                       \
      int64_t end);                                        \
  void linear(                                             \
      const LinearSizes& sizes,                            \
      const LinearPointers& pointers,                      \
      int64_t begin,                                       \
      int64_t end);                                        \
  int64_t linear_items(const LinearSizes& sizes);          \
  }

DCNV3_DECLARE_KERNELS(baseline)
#if defined(__x86_64__)
DCNV3_DECLARE_KERNELS(avx2)
DCNV3_DECLARE_KERNELS(avx512)
#endif
#undef DCNV3_DECLARE_KERNELS

// Every pair of dtypes that is built: features, and offsets with masks.
#define DCNV3_FOR_EACH_DTYPES(apply)                                    \
  apply(double, double) apply(float, float) apply(c10::Half, c10::Half) \
      apply(c10::Half, float) apply(c10::BFloat16, c10::BFloat16)       \
          apply(c10::BFloat16, float)

// Every dtype of features.
#define DCNV3_FOR_EACH_FEATURES(apply) \
  apply(double) apply(float) apply(c10::Half) apply(c10::BFloat16)

}  // namespace dcnv3
