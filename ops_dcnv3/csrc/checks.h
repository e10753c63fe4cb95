// SPDX-License-Identifier: Apache-2.0
// From tensors to a Geometry. The Python function checks the same with better
// error types; this keeps a direct caller of torch.ops from reading out of
// bounds.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "geometry.h"

namespace dcnv3 {

// Raise a RuntimeError of Python unless the condition holds. Messages are built
// only then. (PyTorch's STD_TORCH_CHECK puts the name of the source file before
// the message, which is a path of the machine that built the library.)
#define DCNV3_CHECK(condition, ...)                                \
  do {                                                             \
    if (!(condition)) {                                            \
      throw std::runtime_error(::dcnv3::joined_text(__VA_ARGS__)); \
    }                                                              \
  } while (false)

template <typename... Parts>
std::string joined_text(const Parts&... parts) {
  std::ostringstream text;
  ((text << parts), ...);
  return text.str();
}

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The non-tensor arguments of an operator that samples, as the dispatcher hands
// them over.
struct Settings {
  const std::vector<int64_t>& kernel_size;
  const std::vector<int64_t>& stride;
  const std::vector<int64_t>& padding;
  const std::vector<int64_t>& dilation;
  int64_t groups;
  double offset_scale;
  bool remove_center;
  bool softmax;
};

inline std::string text_of(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  std::string text = "(";
  for (size_t i = 0; i < sizes.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(sizes[i]);
  }
  return text + ")";
}

inline std::string device_of(const Tensor& tensor) {
  return tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index())
                          : "cpu";
}

// Check that a tensor has the dtype, and is on the device, of another one.
inline void check_same_kind(
    const char* name,
    const Tensor& tensor,
    const char* other_name,
    const Tensor& other,
    bool compare_dtypes = true) {
  DCNV3_CHECK(
      !compare_dtypes || tensor.scalar_type() == other.scalar_type(),
      name,
      ": expected the dtype of ",
      other_name,
      ", ",
      other.scalar_type(),
      ", got ",
      tensor.scalar_type());
  DCNV3_CHECK(
      tensor.is_cuda() == other.is_cuda() &&
          tensor.get_device_index() == other.get_device_index(),
      name,
      ": expected the device of ",
      other_name,
      ", ",
      device_of(other),
      ", got ",
      device_of(tensor));
}

inline void check_shape(
    const char* name,
    const Tensor& tensor,
    torch::headeronly::IntHeaderOnlyArrayRef expected) {
  const auto sizes = tensor.sizes();
  DCNV3_CHECK(
      std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end()),
      name,
      ": expected ",
      text_of(expected),
      ", got ",
      text_of(sizes));
}

inline void check_pair(
    const char* name,
    const std::vector<int64_t>& pair,
    int64_t minimum) {
  // The upper bound keeps every product of two settings far from overflow.
  constexpr int64_t kMaximum = int64_t{1} << 24;
  DCNV3_CHECK(
      pair.size() == 2 && pair[0] >= minimum && pair[1] >= minimum &&
          pair[0] <= kMaximum && pair[1] <= kMaximum,
      name,
      ": expected an (h, w) pair in [",
      minimum,
      ", ",
      kMaximum,
      "], got ",
      text_of(pair));
}

// The geometry of an input with these settings.
inline Geometry make_geometry(const Tensor& input, const Settings& settings) {
  check_pair("kernel_size", settings.kernel_size, 1);
  check_pair("stride", settings.stride, 1);
  check_pair("padding", settings.padding, 0);
  check_pair("dilation", settings.dilation, 1);
  DCNV3_CHECK(
      input.dim() == 4,
      "input: expected 4 dimensions (N, H, W, C), got ",
      text_of(input.sizes()));
  DCNV3_CHECK(
      settings.groups > 0 && input.size(3) > 0 &&
          input.size(3) % settings.groups == 0,
      "groups: expected a divisor of ",
      input.size(3),
      " channels, got ",
      settings.groups);
  const int64_t taps = settings.kernel_size[0] * settings.kernel_size[1];
  DCNV3_CHECK(
      taps <= std::numeric_limits<int32_t>::max() &&
          (!settings.remove_center ||
           (taps > 1 && settings.kernel_size[0] % 2 == 1 &&
            settings.kernel_size[1] % 2 == 1)),
      "kernel_size: expected fewer than 2^31 taps and, with remove_center, odd "
      "sides and more than one tap, got ",
      text_of(settings.kernel_size));
  DCNV3_CHECK(
      std::isfinite(settings.offset_scale),
      "offset_scale: expected a finite number, got ",
      settings.offset_scale);

  Geometry g;
  g.batch = input.size(0);
  g.height = input.size(1);
  g.width = input.size(2);
  g.groups = settings.groups;
  g.group_channels = input.size(3) / settings.groups;
  g.kernel_h = static_cast<int32_t>(settings.kernel_size[0]);
  g.kernel_w = static_cast<int32_t>(settings.kernel_size[1]);
  g.stride_h = settings.stride[0];
  g.stride_w = settings.stride[1];
  g.pad_h = settings.padding[0];
  g.pad_w = settings.padding[1];
  g.dilation_h = settings.dilation[0];
  g.dilation_w = settings.dilation[1];
  g.offset_scale = settings.offset_scale;
  g.remove_center = settings.remove_center;
  g.softmax = settings.softmax;
  const auto out_size = [](int64_t size,
                           int64_t kernel,
                           int64_t stride,
                           int64_t pad,
                           int64_t dilation) {
    const int64_t room = size + 2 * pad - dilation * (kernel - 1) - 1;
    return room < 0 ? 0 : room / stride + 1;
  };
  g.out_height =
      out_size(g.height, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h);
  g.out_width =
      out_size(g.width, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w);
  DCNV3_CHECK(
      g.height > 0 && g.width > 0 && g.out_height > 0 && g.out_width > 0,
      "input: an empty output comes from ",
      text_of(input.sizes()),
      " with these settings");
  return g;
}

// The same, with offsets and a mask that fit it.
inline Geometry make_geometry(
    const Tensor& input,
    const Tensor& offset,
    const Tensor& mask,
    const Settings& settings) {
  const Geometry g = make_geometry(input, settings);
  const int64_t points = g.groups * g.points();
  check_shape(
      "offset",
      offset,
      {g.batch, g.out_height, g.out_width, points * 2});
  check_shape("mask", mask, {g.batch, g.out_height, g.out_width, points});
  check_same_kind("offset", offset, "input", input, false);
  check_same_kind("mask", mask, "offset", offset);
  return g;
}

inline void check_grad_output(
    const Tensor& grad_output,
    const Tensor& input,
    const Geometry& g) {
  check_shape(
      "grad_output",
      grad_output,
      {g.batch, g.out_height, g.out_width, g.channels()});
  check_same_kind("grad_output", grad_output, "input", input);
}

inline BranchSizes make_branch_sizes(
    const Tensor& input,
    const Tensor& weight,
    const Tensor& bias,
    const Tensor& norm_weight,
    const Tensor& norm_bias,
    double eps) {
  DCNV3_CHECK(
      input.dim() == 4,
      "input: expected (N, H, W, C), got ",
      text_of(input.sizes()));
  DCNV3_CHECK(
      weight.dim() == 4 && weight.size(2) % 2 == 1 && weight.size(3) % 2 == 1,
      "weight: expected (C, 1, odd, odd), got ",
      text_of(weight.sizes()));
  const int64_t channels = input.size(3);
  check_shape("weight", weight, {channels, 1, weight.size(2), weight.size(3)});
  for (const auto& [name, tensor] :
       {std::pair<const char*, const Tensor&>{"bias", bias},
        {"norm_weight", norm_weight},
        {"norm_bias", norm_bias}}) {
    check_shape(name, tensor, {channels});
    check_same_kind(name, tensor, "weight", weight);
  }
  check_same_kind("weight", weight, "input", input, false);
  return {
      input.size(0),
      input.size(1),
      input.size(2),
      channels,
      weight.size(2),
      weight.size(3),
      eps};
}

// The tensor itself if it is contiguous; asking for it is a slow call.
inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Call launch.template operator()<scalar_t, point_t>() for the dtypes of
// features and of offsets. A functor with template parameters, as the dispatch
// macros of PyTorch split their body at commas.
template <typename Launch>
void dispatch_dtypes(
    ScalarType scalar,
    ScalarType point,
    const Launch& launch) {
  const bool same = scalar == point;
  const bool float_points = point == ScalarType::Float;
  if (same && scalar == ScalarType::Double) {
    launch.template operator()<double, double>();
  } else if (same && scalar == ScalarType::Float) {
    launch.template operator()<float, float>();
  } else if (same && scalar == ScalarType::Half) {
    launch.template operator()<c10::Half, c10::Half>();
  } else if (float_points && scalar == ScalarType::Half) {
    launch.template operator()<c10::Half, float>();
  } else if (same && scalar == ScalarType::BFloat16) {
    launch.template operator()<c10::BFloat16, c10::BFloat16>();
  } else if (float_points && scalar == ScalarType::BFloat16) {
    launch.template operator()<c10::BFloat16, float>();
  } else {
    DCNV3_CHECK(
        false,
        "input: expected float64, float32, bfloat16 or float16, and beside it "
        "the same dtype or, in half precision, float32, got ",
        scalar,
        " and ",
        point);
  }
}

}  // namespace dcnv3
