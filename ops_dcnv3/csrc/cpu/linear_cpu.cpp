// SPDX-License-Identifier: Apache-2.0
// Linear layers on the CPU, and an MLP of two with a GELU between them.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "layers.h"

namespace dcnv3 {
namespace {

int64_t last_size(const Tensor& tensor) {
  DCNV3_CHECK(
      tensor.dim() > 0,
      "input: expected (..., features), got no dimensions");
  return tensor.size(tensor.dim() - 1);
}

Tensor linear_forward_cpu(
    const Tensor& input,
    const Tensor& weight,
    const std::optional<Tensor>& bias) {
  const LinearLayer layer("weight", weight, "bias", bias, last_size(input));
  const Numbers x("input", input);
  Tensor output =
      torch::stable::new_empty(input, shape_with(input, layer.out_features));
  const int64_t rows = input.numel() / layer.in_features;
  run_by_all({layer.task(x.data(), rows, numbers_of(output))});
  return output;
}

Tensor mlp_forward_cpu(
    const Tensor& input,
    const std::vector<Tensor>& parameters,
    const std::vector<Tensor>& norm_parameters,
    double norm_eps,
    bool add_input) {
  DCNV3_CHECK(
      parameters.size() == 4,
      "parameters: expected weight and bias of two layers, got ",
      parameters.size(),
      " tensors");
  const auto& p = parameters;
  const int64_t channels = last_size(input);
  const LinearLayer layer1("fc1.weight", p[0], "fc1.bias", p[1], channels);
  const int64_t width = layer1.out_features;
  const LinearLayer layer2("fc2.weight", p[2], "fc2.bias", p[3], width);
  const NormLayer norm(norm_parameters, channels, norm_eps);
  const auto shape = shape_with(input, layer2.out_features);
  if (add_input) {
    check_shape("input", input, shape);
  }
  const Numbers x("input", input);
  Tensor output = torch::stable::new_empty(input, shape);
  const int64_t rows = input.numel() / channels;

  // All threads together take few rows, so that what is between the layers fits
  // the third cache (4 MiB), but enough to read the weights for.
  const int64_t before = norm.is_there() ? channels : 0;
  const Shares shares(rows, width + before);
  const bool is_alone = shares.are_worthwhile();
  const int64_t fit = std::max<int64_t>(1024 * 1024 / width, 512);
  const int64_t part = is_alone ? shares.part() : std::min(fit, rows);
  Tensor between = torch::stable::new_empty(
      input,
      {(is_alone ? shares.count() : 1) * part, width + before});
  const auto run = [&](int64_t index, int64_t begin, int64_t end) {
    float* const hidden = numbers_of(between) + index * part * (width + before);
    float* const normed = hidden + part * width;
    const int64_t count = end - begin;
    const float* const from = x.data() + begin * channels;
    const float* const seen = norm.is_there() ? normed : from;
    const LinearTask task1 = layer1.task(seen, count, hidden, true);
    const LinearTask task2 = layer2.task(
        hidden,
        count,
        numbers_of(output) + begin * layer2.out_features,
        false,
        add_input ? from : nullptr);
    if (is_alone) {
      norm.run(from, count, normed);
      task1.before(task2).run();
      task2.run();
    } else {
      norm.run_by_all(from, count, normed);
      run_by_all({task1.before(task2)});
      run_by_all({task2});
    }
  };
  if (is_alone) {
    shares.for_each_part(run);
  } else {
    for (int64_t row = 0; row < rows; row += part) {
      run(0, row, std::min(row + part, rows));
    }
  }
  return output;
}

}  // namespace
}  // namespace dcnv3

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CPU, m) {
  m.impl("linear_forward", TORCH_BOX(&dcnv3::linear_forward_cpu));
  m.impl("mlp_forward", TORCH_BOX(&dcnv3::mlp_forward_cpu));
}
