// SPDX-License-Identifier: Apache-2.0
// The DCNv3 layer on the CPU in one call: for small maps, the way from Python
// to each of its parts takes longer than the part.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "layers.h"
#include "operators.h"

namespace dcnv3 {
namespace {

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
  const int64_t channels = last_size(input);
  const int64_t rows = channels ? input.numel() / channels : 0;
  const Numbers x("input", input);
  const NormLayer norm(norm_parameters, channels, norm_eps);
  Tensor normed = input;
  if (norm.is_there()) {
    normed = torch::stable::new_empty(input, input.sizes());
    norm.run_by_all(x.data(), rows, numbers_of(normed));
  }
  const Tensor branch = branch_forward_cpu(normed, p[0], p[1], p[2], p[3], eps);
  // The three projections do not wait for each other.
  const LinearLayer offset_layer("offset.weight", p[4], "bias", p[5], channels);
  const LinearLayer mask_layer("mask.weight", p[6], "bias", p[7], channels);
  const LinearLayer in_layer("input_proj.weight", p[8], "bias", p[9], channels);
  const auto make = [&](const LinearLayer& layer) {
    return torch::stable::new_empty(
        input,
        shape_with(input, layer.out_features));
  };
  Tensor offset = make(offset_layer);
  Tensor mask = make(mask_layer);
  Tensor projected = make(in_layer);
  const Numbers from("input", normed);
  const Numbers seen("branch", branch);
  run_by_all(
      {offset_layer.task(seen.data(), rows, numbers_of(offset)),
       mask_layer.task(seen.data(), rows, numbers_of(mask)),
       in_layer.task(from.data(), rows, numbers_of(projected))});
  const Tensor sampled = sample_cpu(
      projected,
      offset,
      mask,
      {kernel_size,
       stride,
       padding,
       dilation,
       groups,
       offset_scale,
       remove_center,
       true});
  const LinearLayer out_layer(
      "output_proj.weight",
      p[10],
      "bias",
      p[11],
      channels);
  const auto shape = shape_with(sampled, out_layer.out_features);
  if (add_input) {
    check_shape("input", input, shape);
  }
  const Numbers between("sampled", sampled);
  Tensor output = torch::stable::new_empty(input, shape);
  run_by_all({out_layer.task(
      between.data(),
      sampled.numel() / channels,
      numbers_of(output),
      false,
      add_input ? x.data() : nullptr)});
  return output;
}

}  // namespace
}  // namespace dcnv3

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CPU, m) {
  m.impl("layer_forward", TORCH_BOX(&dcnv3::layer_forward_cpu));
}
