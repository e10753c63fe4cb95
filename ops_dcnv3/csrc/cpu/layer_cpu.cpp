// SPDX-License-Identifier: Apache-2.0
// The DCNv3 layer on the CPU in one call: for small maps, the way from Python
// to each of its parts takes longer than the part.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "layers.h"

namespace dcnv3 {
namespace {

// All parts of the layer, and what is between them: (H, W) stays, so a row is a
// pixel everywhere.
struct Layer {
  NormLayer norm;
  BranchSizes branch_sizes;
  BranchPointers<float> branch;
  Geometry geometry;
  LinearTask offset;
  LinearTask mask;
  LinearTask input_proj;
  LinearTask output_proj;
  const float* input;
  float* normed;
  float* sampled;

  int64_t rows() const { return geometry.out_pixels(); }
  void run_branch(int64_t begin, int64_t end) const {
    DCNV3_BEST_KERNEL(branch<float>)(branch_sizes, branch, begin, end);
  }
  void sample(int64_t begin, int64_t end) const {
    const ForwardPointers<float, float> pointers{
        input_proj.output(),
        offset.output(),
        mask.output(),
        sampled};
    DCNV3_BEST_KERNEL(forward<float, float>)(geometry, pointers, begin, end);
  }
};

// Each thread has a share of the rows. It waits for the others where it reads
// what they made, before the convolution and before the samples.
void run_in_shares(const Layer& layer, const Shares& shares) {
  const int64_t channels = layer.geometry.channels();
  if (layer.norm.is_there()) {
    shares.for_each_part([&](int64_t, int64_t begin, int64_t end) {
      const int64_t at = begin * channels;
      layer.norm.run(layer.input + at, end - begin, layer.normed + at);
    });
  }
  shares.for_each_part([&](int64_t, int64_t begin, int64_t end) {
    layer.run_branch(begin, end);
    layer.offset.before(layer.mask).of_rows(begin, end).run();
    layer.mask.before(layer.input_proj).of_rows(begin, end).run();
    layer.input_proj.before(layer.output_proj).of_rows(begin, end).run();
  });
  shares.for_each_part([&](int64_t, int64_t begin, int64_t end) {
    layer.sample(begin, end);
    layer.output_proj.of_rows(begin, end).run();
  });
}

// All threads run one part after the other.
void run_in_turn(const Layer& layer) {
  layer.norm.run_by_all(layer.input, layer.rows(), layer.normed);
  torch::stable::parallel_for(
      0,
      layer.rows(),
      branch_grain(layer.branch_sizes),
      [&](int64_t begin, int64_t end) { layer.run_branch(begin, end); });
  // The three projections do not wait for each other.
  run_by_all({layer.offset, layer.mask, layer.input_proj});
  torch::stable::parallel_for(
      0,
      layer.rows(),
      forward_grain(layer.geometry),
      [&](int64_t begin, int64_t end) { layer.sample(begin, end); });
  run_by_all({layer.output_proj});
}

Tensor layer_forward_cpu(
    const Tensor& input,
    const std::vector<Tensor>& parameters,
    double eps,
    const std::vector<Tensor>& norm_parameters,
    double norm_eps,
    bool add_input,
    const std::vector<int64_t>& kernel_size,
    const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation,
    int64_t groups,
    double offset_scale,
    bool remove_center) {
  STD_TORCH_CHECK(
      parameters.size() == 12,
      "parameters: expected weight and bias of dw_conv, its norm, offset, "
      "mask, "
      "input_proj and output_proj, got ",
      parameters.size(),
      " tensors");
  const auto& p = parameters;
  const Geometry g = make_geometry(
      input,
      {kernel_size,
       stride,
       padding,
       dilation,
       groups,
       offset_scale,
       remove_center,
       true});
  check_sides(input, g);
  STD_TORCH_CHECK(
      g.out_height == g.height && g.out_width == g.width,
      "kernel_size, stride, padding, dilation: expected an output of the "
      "input's size");
  const int64_t channels = g.channels();
  const int64_t points = g.groups * g.points();
  const Numbers x("input", input);
  const NormLayer norm(norm_parameters, channels, norm_eps);
  const BranchSizes branch_sizes =
      make_branch_sizes(input, p[0], p[1], p[2], p[3], eps);
  const Numbers conv_weight("dw_conv.weight", p[0]);
  const Numbers conv_bias("dw_conv.bias", p[1]);
  const Numbers norm_weight("dw_conv.norm.weight", p[2]);
  const Numbers norm_bias("dw_conv.norm.bias", p[3]);
  const LinearLayer offset("offset.weight", p[4], "bias", p[5], channels);
  const LinearLayer mask("mask.weight", p[6], "bias", p[7], channels);
  const LinearLayer in_proj("input_proj.weight", p[8], "bias", p[9], channels);
  const LinearLayer out_proj(
      "output_proj.weight",
      p[10],
      "bias",
      p[11],
      channels);
  check_shape("offset.weight", p[4], {2 * points, channels});
  check_shape("mask.weight", p[6], {points, channels});
  check_shape("input_proj.weight", p[8], {channels, channels});
  if (add_input) {
    check_shape("output_proj.weight", p[10], {channels, channels});
  }

  // What is between the parts lies together: to ask for memory takes long, too.
  const int64_t rows = g.out_pixels();
  const int64_t width = (norm.is_there() ? 3 : 2) * channels + 3 * points;
  Tensor between = torch::stable::new_empty(input, {rows, width});
  float* const branch = numbers_of(between);
  float* const offsets = branch + rows * channels;
  float* const masks = offsets + rows * 2 * points;
  float* const projected = masks + rows * points;
  float* const normed = projected + rows * channels;
  const float* const seen = norm.is_there() ? normed : x.data();
  Tensor output =
      torch::stable::new_empty(input, shape_with(input, out_proj.out_features));
  const Layer layer{
      norm,
      branch_sizes,
      {seen,
       conv_weight.data(),
       conv_bias.data(),
       norm_weight.data(),
       norm_bias.data(),
       branch},
      g,
      offset.task(branch, rows, offsets),
      mask.task(branch, rows, masks),
      in_proj.task(seen, rows, projected),
      out_proj.task(
          branch,
          rows,
          numbers_of(output),
          false,
          add_input ? x.data() : nullptr),
      x.data(),
      normed,
      branch};  // read for the last time before the first sample
  const Shares shares(rows, width);
  if (shares.are_large()) {
    run_in_shares(layer, shares);
  } else {
    run_in_turn(layer);
  }
  return output;
}

}  // namespace
}  // namespace dcnv3

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CPU, m) {
  m.impl("layer_forward", TORCH_BOX(&dcnv3::layer_forward_cpu));
}
