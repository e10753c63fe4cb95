// SPDX-License-Identifier: Apache-2.0
// The DCNv3 layer on the CPU in one call: for small maps, the way from Python
// to each of its parts takes longer than the part.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "checks_cpu.h"
#include "layers.h"

namespace dcnv3 {
namespace {

// Weight and bias of dw_conv, its norm, offset, mask, input_proj, output_proj.
constexpr size_t kParameters = 12;

// The parts of the layer, and the memory that all rows share. (H, W) stays, so
// a row is a pixel everywhere.
class Layer {
 public:
  Layer(
      const Tensor& x,
      const std::vector<Tensor>& p,
      double eps,
      const std::vector<Tensor>& norm_parameters,
      double norm_eps,
      bool add_input,
      const Settings& settings)
      : geometry(make_geometry(x, settings)),
        branch_sizes(make_branch_sizes(x, p[0], p[1], p[2], p[3], eps)),
        input("input", x),
        conv_weight("dw_conv.weight", p[0]),
        conv_bias("dw_conv.bias", p[1]),
        norm_weight("dw_conv.norm.weight", p[2]),
        norm_bias("dw_conv.norm.bias", p[3]),
        offset("offset.weight", p[4], "offset.bias", p[5], channels()),
        mask("mask.weight", p[6], "mask.bias", p[7], channels()),
        input_proj(
            "input_proj.weight",
            p[8],
            "input_proj.bias",
            p[9],
            channels()),
        output_proj(
            "output_proj.weight",
            p[10],
            "output_proj.bias",
            p[11],
            channels()),
        norm(norm_parameters, channels(), norm_eps),
        residual(add_input ? input.data() : nullptr) {
    check_sides(x, geometry);
    DCNV3_CHECK(
        geometry.out_height == geometry.height &&
            geometry.out_width == geometry.width,
        "kernel_size, stride, padding, dilation: expected an output of the "
        "input's size, (",
        geometry.height,
        ", ",
        geometry.width,
        "), got (",
        geometry.out_height,
        ", ",
        geometry.out_width,
        ")");
    check_shape("offset.weight", p[4], {2 * points(), channels()});
    check_shape("mask.weight", p[6], {points(), channels()});
    check_shape("input_proj.weight", p[8], {channels(), channels()});
    if (add_input) {
      check_shape("output_proj.weight", p[10], {channels(), channels()});
    }
  }

  int64_t rows() const { return geometry.out_pixels(); }
  int64_t channels() const { return geometry.channels(); }
  int64_t points() const { return geometry.groups * geometry.points(); }
  // Numbers of a row in the memory.
  int64_t width() const { return (norm.is_there() ? 2 : 1) * channels(); }
  void use(float* memory, float* output_memory) {
    projected = memory;
    normed = norm.is_there() ? memory + rows() * channels() : nullptr;
    output = output_memory;
  }
  // The input, or what the norm makes of it.
  const float* seen() const { return normed ? normed : input.data(); }

  // From the input to what others see of the rows from begin to end.
  void project(int64_t begin, int64_t end) const {
    const int64_t at = begin * channels();
    if (normed) {
      norm.run(input.data() + at, end - begin, normed + at);
    }
    input_proj.task(seen() + at, end - begin, projected + at).run();
  }

  const Geometry geometry;
  const BranchSizes branch_sizes;
  const Numbers input, conv_weight, conv_bias, norm_weight, norm_bias;
  const LinearLayer offset, mask, input_proj, output_proj;
  const NormLayer norm;
  const float* const residual;  // null, or the input
  float* normed = nullptr;
  float* projected = nullptr;
  float* output = nullptr;
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
    const BranchPointers<float> pointers{
        l_.seen(),
        l_.conv_weight.data(),
        l_.conv_bias.data(),
        l_.norm_weight.data(),
        l_.norm_bias.data(),
        features_ + begin * l_.channels()};
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
  shares.for_each_part(
      [&](int64_t, int64_t begin, int64_t end) { layer.project(begin, end); });
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
  const int64_t count = layer.rows();
  layer.norm.run_by_all(layer.input.data(), count, layer.normed);
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
  DCNV3_CHECK(
      parameters.size() == kParameters,
      "parameters: expected weight and bias of dw_conv, its norm, offset, "
      "mask, input_proj and output_proj, got ",
      parameters.size(),
      " tensors");
  Layer layer(
      input,
      parameters,
      eps,
      norm_parameters,
      norm_eps,
      add_input,
      {kernel_size,
       stride,
       padding,
       dilation,
       groups,
       offset_scale,
       remove_center,
       true});
  const int64_t width = LayerRows::width(layer);
  const Shares shares(layer.rows(), layer.width() + width);
  const bool is_alone = shares.are_worthwhile();
  const int64_t own = is_alone ? shares.count() * shares.part() : layer.rows();
  const int64_t shared = layer.rows() * layer.width();
  // One piece of memory for all: to ask for it takes long, too.
  Tensor between = torch::stable::new_empty(input, {shared + own * width});
  Tensor output = torch::stable::new_empty(
      input,
      shape_with(input, layer.output_proj.out_features));
  float* const memory = numbers_of(between);
  layer.use(memory, numbers_of(output));
  if (is_alone) {
    run_in_shares(layer, shares, memory + shared);
  } else {
    run_in_turn(layer, memory + shared);
  }
  return output;
}

}  // namespace
}  // namespace dcnv3

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CPU, m) {
  m.impl("layer_forward", TORCH_BOX(&dcnv3::layer_forward_cpu));
}
