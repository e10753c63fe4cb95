// SPDX-License-Identifier: Apache-2.0
// The DCNv3 layer of a block on the CPU in one call, with what stands around
// it: for small maps, the way from Python to each of its parts takes longer
// than the part.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "checks_cpu.h"
#include "layers.h"

namespace dcnv3 {
namespace {

// Weight and bias of each part, or nothing of one that may be absent.
struct Parts {
  const std::vector<Tensor>& pre_norm;
  double pre_norm_eps;
  const std::vector<Tensor>& dw_conv;
  const std::vector<Tensor>& dw_norm;
  double dw_norm_eps;
  const std::vector<Tensor>& offset;
  const std::vector<Tensor>& mask;
  const std::vector<Tensor>& center_scale;
  const std::vector<Tensor>& input_proj;
  const std::vector<Tensor>& output_proj;
  const std::vector<Tensor>& post_norm;
  double post_norm_eps;
  const std::optional<Tensor>& scale;
  bool add_input;
};

// The layer for an input. It keeps the size of the map, so that a row is a
// pixel everywhere. Its memory has a part that all rows share, and one of the
// rows that are on their way.
class Layer {
 public:
  Layer(const Tensor& input, const Parts& p, const Settings& settings)
      : geometry_(make_geometry(input, settings)),
        input_("input", input),
        pre_norm_("pre_norm", p.pre_norm, channels(), p.pre_norm_eps),
        dw_conv_("dw_conv", p.dw_conv, {channels(), 1, kAny, kAny}),
        dw_norm_("dw_norm", p.dw_norm, {channels()}),
        branch_sizes_(make_branch_sizes(
            input,
            p.dw_conv[0],
            p.dw_conv[1],
            p.dw_norm[0],
            p.dw_norm[1],
            p.dw_norm_eps)),
        offset_("offset", p.offset, 2 * points(), channels()),
        mask_("mask", p.mask, points(), channels()),
        center_scale_(
            "center_scale",
            p.center_scale,
            geometry_.groups,
            channels(),
            true),
        input_proj_("input_proj", p.input_proj, channels(), channels()),
        last_(
            LinearLayer("output_proj", p.output_proj, channels(), channels()),
            NormLayer("post_norm", p.post_norm, channels(), p.post_norm_eps),
            p.scale,
            p.add_input ? input_.data() : nullptr) {
    check_sides(input, geometry_);
    const Geometry& g = geometry_;
    DCNV3_CHECK(
        g.out_height == g.height && g.out_width == g.width && g.stride_h == 1 &&
            g.stride_w == 1,
        "kernel_size, stride, padding, dilation: expected stride 1 and an "
        "output of the input's size, (",
        g.height,
        ", ",
        g.width,
        "), got stride (",
        g.stride_h,
        ", ",
        g.stride_w,
        ") and (",
        g.out_height,
        ", ",
        g.out_width,
        ")");
  }

  int64_t rows() const { return geometry_.out_pixels(); }
  // Numbers of a row in the memory that all share, and in its own.
  int64_t shared_width() const {
    return (pre_norm_.is_there() ? 2 : 1) * channels();
  }
  int64_t own_width() const {
    return channels() + 3 * points() +
           (center_scale_.is_there() ? geometry_.groups : 0);
  }

  // From the input to what other rows see of the rows from begin to end.
  void project(Threads threads, int64_t begin, int64_t end, float* shared)
      const {
    const int64_t at = begin * channels();
    if (pre_norm_.is_there()) {
      float* const normed = shared + rows() * channels() + at;
      pre_norm_.run(threads, input_.data() + at, end - begin, normed);
    }
    dcnv3::run(
        threads,
        {input_proj_.task(seen(shared) + at, end - begin, shared + at)});
  }

  // From that to the output of the rows from begin to end.
  void run(
      Threads threads,
      int64_t begin,
      int64_t end,
      const float* shared,
      float* own,
      float* output) const {
    const int64_t count = end - begin;
    float* const features = own;
    float* const offsets = features + count * channels();
    float* const masks = offsets + count * 2 * points();
    float* const center_logits = masks + count * points();
    const BranchPointers<float> around{
        seen(shared),
        dw_conv_.weight(),
        dw_conv_.bias(),
        dw_norm_.weight(),
        dw_norm_.bias(),
        features};
    for_rows(
        threads,
        count,
        branch_grain(branch_sizes_),
        [&](int64_t first, int64_t last) {
          BranchPointers<float> part = around;
          part.output += first * channels();
          DCNV3_BEST_KERNEL(branch<float>)
          (branch_sizes_, part, begin + first, begin + last);
        });

    std::vector<LinearTask> predictions{
        offset_.task(features, count, offsets),
        mask_.task(features, count, masks)};
    if (center_scale_.is_there()) {
      predictions.push_back(center_scale_.task(features, count, center_logits));
    }
    dcnv3::run(threads, predictions, last_.weights());

    // In place of the features, which are not needed any more.
    const ForwardPointers<float, float> samples{
        shared,
        offsets,
        masks,
        features};
    for_rows(
        threads,
        count,
        forward_grain(geometry_),
        [&](int64_t first, int64_t last) {
          ForwardPointers<float, float> part = samples;
          part.offset += first * 2 * points();
          part.mask += first * points();
          part.output += first * channels();
          DCNV3_BEST_KERNEL(forward<float, float>)
          (geometry_, part, begin + first, begin + last);
          if (center_scale_.is_there()) {
            const CenterPointers centers{
                center_logits,
                shared + begin * channels(),
                features};
            DCNV3_BEST_KERNEL(center)
            ({geometry_.groups, geometry_.group_channels},
             centers,
             first,
             last);
          }
        });
    last_.run(threads, features, begin, end, output);
  }

 private:
  int64_t channels() const { return geometry_.channels(); }
  int64_t points() const { return geometry_.groups * geometry_.points(); }
  // The input, or what the norm makes of it.
  const float* seen(const float* shared) const {
    return pre_norm_.is_there() ? shared + rows() * channels() : input_.data();
  }

  Geometry geometry_;
  Numbers input_;
  NormLayer pre_norm_;
  Parameters dw_conv_, dw_norm_;
  BranchSizes branch_sizes_;
  LinearLayer offset_, mask_, center_scale_, input_proj_;
  LastLayer last_;
};

Tensor layer_forward_cpu(
    const Tensor& input,
    const std::vector<Tensor>& pre_norm,
    double pre_norm_eps,
    const std::vector<Tensor>& dw_conv,
    const std::vector<Tensor>& dw_norm,
    double dw_norm_eps,
    const std::vector<Tensor>& offset,
    const std::vector<Tensor>& mask,
    const std::vector<Tensor>& center_scale,
    const std::vector<Tensor>& input_proj,
    const std::vector<Tensor>& output_proj,
    const std::vector<Tensor>& post_norm,
    double post_norm_eps,
    const std::optional<Tensor>& scale,
    bool add_input,
    const std::vector<int64_t>& kernel_size,
    const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation,
    int64_t groups,
    double offset_scale,
    bool remove_center) {
  const Layer layer(
      input,
      {pre_norm,
       pre_norm_eps,
       dw_conv,
       dw_norm,
       dw_norm_eps,
       offset,
       mask,
       center_scale,
       input_proj,
       output_proj,
       post_norm,
       post_norm_eps,
       scale,
       add_input},
      {kernel_size,
       stride,
       padding,
       dilation,
       groups,
       offset_scale,
       remove_center,
       true});
  const int64_t rows = layer.rows();
  const int64_t width = layer.own_width();
  const Shares shares(rows, layer.shared_width() + width);
  const bool is_alone = shares.are_worthwhile();
  const int64_t own_rows = is_alone ? shares.count() * shares.part() : rows;
  const int64_t shared_size = rows * layer.shared_width();
  // One piece of memory for all: to ask for it takes long, too.
  Tensor memory =
      torch::stable::new_empty(input, {shared_size + own_rows * width});
  Tensor output = torch::stable::new_empty(input, input.sizes());
  float* const shared = numbers_of(memory);
  float* const own = shared + shared_size;
  float* const target = numbers_of(output);
  if (!is_alone) {
    layer.project(Threads::kAll, 0, rows, shared);
    layer.run(Threads::kAll, 0, rows, shared, own, target);
    return output;
  }
  // Each thread has a share of the rows. It waits once for the others: their
  // norm and projection are what it convolves and samples.
  shares.for_each_part([&](int64_t, int64_t begin, int64_t end) {
    layer.project(Threads::kThis, begin, end, shared);
  });
  const int64_t size = shares.part() * width;
  shares.for_each_part([&](int64_t index, int64_t begin, int64_t end) {
    layer.run(Threads::kThis, begin, end, shared, own + index * size, target);
  });
  return output;
}

}  // namespace
}  // namespace dcnv3

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CPU, m) {
  m.impl("layer_forward", TORCH_BOX(&dcnv3::layer_forward_cpu));
}
