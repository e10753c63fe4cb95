// SPDX-License-Identifier: Apache-2.0
// The DCNv3 layer on the CPU in one call: for small maps, the way from Python
// to each of its parts takes longer than the part.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "layers.h"

namespace dcnv3 {
namespace {

// The parts of the layer, and what each row has of others: (H, W) stays, so a
// row is a pixel everywhere.
struct Layer {
  NormLayer norm;
  LinearLayer input_proj;
  BranchSizes branch_sizes;
  BranchPointers<float> branch;
  LinearLayer offset;
  LinearLayer mask;
  Geometry geometry;
  LinearLayer output_proj;
  const float* input;
  const float* residual;  // null, or the input
  float* normed = nullptr;
  float* projected = nullptr;
  float* output = nullptr;

  int64_t channels() const { return geometry.channels(); }
  int64_t points() const { return geometry.groups * geometry.points(); }
  // The input, or what the norm makes of it.
  const float* seen() const { return norm.is_there() ? normed : input; }
};

// What is computed for some rows from what all have.
class LayerRows {
 public:
  // Numbers of a row in the memory.
  static int64_t width(const Layer& layer) {
    return layer.channels() + 3 * layer.points();
  }

  LayerRows(const Layer& layer, int64_t begin, int64_t end, float* memory)
      : l_(layer),
        begin_(begin),
        count_(end - begin),
        features_(memory),
        offsets_(features_ + count_ * layer.channels()),
        masks_(offsets_ + count_ * 2 * layer.points()) {}

  // Each method is for the rows from begin to end of these.
  void look_around(int64_t begin, int64_t end) const {
    BranchPointers<float> pointers = l_.branch;
    pointers.output = features_ + begin * l_.channels();
    DCNV3_BEST_KERNEL(branch<float>)
    (l_.branch_sizes, pointers, begin_ + begin, begin_ + end);
  }
  LinearTask offset() const {
    return l_.offset.task(features_, count_, offsets_);
  }
  LinearTask mask() const { return l_.mask.task(features_, count_, masks_); }
  // In place of the features, which are not needed any more.
  void sample(int64_t begin, int64_t end) const {
    const ForwardPointers<float, float> pointers{
        l_.projected,
        offsets_ + begin * 2 * l_.points(),
        masks_ + begin * l_.points(),
        features_ + begin * l_.channels()};
    DCNV3_BEST_KERNEL(forward<float, float>)
    (l_.geometry, pointers, begin_ + begin, begin_ + end);
  }
  LinearTask output_proj() const {
    const int64_t at = begin_ * l_.output_proj.out_features;
    return l_.output_proj.task(
        features_,
        count_,
        l_.output + at,
        false,
        l_.residual ? l_.residual + at : nullptr);
  }

 private:
  const Layer& l_;
  int64_t begin_;
  int64_t count_;
  float* features_;
  float* offsets_;
  float* masks_;
};

// Each thread has a share of the rows. It waits once for the others: their norm
// and projection are what it convolves and samples.
void run_in_shares(const Layer& layer, const Shares& shares, float* memory) {
  const int64_t channels = layer.channels();
  shares.for_each_part([&](int64_t, int64_t begin, int64_t end) {
    const int64_t at = begin * channels;
    const int64_t count = end - begin;
    layer.norm.run(layer.input + at, count, layer.normed + at);
    layer.input_proj.task(layer.seen() + at, count, layer.projected + at).run();
  });
  const int64_t size = shares.part() * LayerRows::width(layer);
  shares.for_each_part([&](int64_t index, int64_t begin, int64_t end) {
    const LayerRows rows(layer, begin, end, memory + index * size);
    const int64_t count = end - begin;
    rows.look_around(0, count);
    rows.offset().before(rows.mask()).run();
    rows.mask().before(rows.output_proj()).run();
    rows.sample(0, count);
    rows.output_proj().run();
  });
}

// All threads run one part of the layer after the other.
void run_in_turn(const Layer& layer, float* memory) {
  const int64_t count = layer.geometry.out_pixels();
  layer.norm.run_by_all(layer.input, count, layer.normed);
  const LayerRows rows(layer, 0, count, memory);
  torch::stable::parallel_for(
      0,
      count,
      branch_grain(layer.branch_sizes),
      [&](int64_t begin, int64_t end) { rows.look_around(begin, end); });
  // The three projections do not wait for each other.
  run_by_all(
      {rows.offset(),
       rows.mask(),
       layer.input_proj.task(layer.seen(), count, layer.projected)});
  torch::stable::parallel_for(
      0,
      count,
      forward_grain(layer.geometry),
      [&](int64_t begin, int64_t end) { rows.sample(begin, end); });
  run_by_all({rows.output_proj()});
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
  const int64_t rows = g.out_pixels();
  const Numbers x("input", input);
  const Numbers conv_weight("dw_conv.weight", p[0]);
  const Numbers conv_bias("dw_conv.bias", p[1]);
  const Numbers norm_weight("dw_conv.norm.weight", p[2]);
  const Numbers norm_bias("dw_conv.norm.bias", p[3]);
  Layer layer{
      NormLayer(norm_parameters, channels, norm_eps),
      LinearLayer("input_proj.weight", p[8], "bias", p[9], channels),
      make_branch_sizes(input, p[0], p[1], p[2], p[3], eps),
      {nullptr,
       conv_weight.data(),
       conv_bias.data(),
       norm_weight.data(),
       norm_bias.data(),
       nullptr},
      LinearLayer("offset.weight", p[4], "bias", p[5], channels),
      LinearLayer("mask.weight", p[6], "bias", p[7], channels),
      g,
      LinearLayer("output_proj.weight", p[10], "bias", p[11], channels),
      x.data(),
      add_input ? x.data() : nullptr};
  check_shape("offset.weight", p[4], {2 * layer.points(), channels});
  check_shape("mask.weight", p[6], {layer.points(), channels});
  check_shape("input_proj.weight", p[8], {channels, channels});
  const int64_t out_channels = layer.output_proj.out_features;
  if (add_input) {
    check_shape("output_proj.weight", p[10], {channels, channels});
  }

  // What is between the parts lies together: to ask for memory takes long, too.
  const int64_t kept = (layer.norm.is_there() ? 2 : 1) * channels;
  const int64_t width = LayerRows::width(layer);
  const Shares shares(rows, kept + width);
  const bool is_alone = shares.are_large();
  const int64_t own = is_alone ? shares.count() * shares.part() : rows;
  Tensor between = torch::stable::new_empty(input, {rows * kept + own * width});
  Tensor output =
      torch::stable::new_empty(input, shape_with(input, out_channels));
  float* const memory = numbers_of(between);
  layer.projected = memory;
  layer.normed = memory + rows * channels;
  layer.output = numbers_of(output);
  layer.branch.input = layer.seen();
  if (is_alone) {
    run_in_shares(layer, shares, memory + rows * kept);
  } else {
    run_in_turn(layer, memory + rows * kept);
  }
  return output;
}

}  // namespace
}  // namespace dcnv3

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CPU, m) {
  m.impl("layer_forward", TORCH_BOX(&dcnv3::layer_forward_cpu));
}
