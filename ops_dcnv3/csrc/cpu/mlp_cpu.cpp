// SPDX-License-Identifier: Apache-2.0
// The MLP of a block on the CPU in one call, with what stands around it.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "layers.h"

namespace dcnv3 {
namespace {

Tensor mlp_forward_cpu(
    const Tensor& input,
    const std::vector<Tensor>& pre_norm,
    double pre_norm_eps,
    const std::vector<Tensor>& fc1,
    const std::vector<Tensor>& fc2,
    const std::vector<Tensor>& post_norm,
    double post_norm_eps,
    const std::optional<Tensor>& scale,
    bool add_input) {
  DCNV3_CHECK(
      input.dim() > 0 && input.size(input.dim() - 1) > 0,
      "input: expected (..., C), with at least one channel, got ",
      text_of(input.sizes()));
  const int64_t channels = input.size(input.dim() - 1);
  const Numbers x("input", input);
  const NormLayer norm("pre_norm", pre_norm, channels, pre_norm_eps);
  const LinearLayer first("fc1", fc1, kAny, channels);
  const int64_t width = first.out_features();
  const LastLayer last(
      LinearLayer("fc2", fc2, channels, width),
      NormLayer("post_norm", post_norm, channels, post_norm_eps),
      scale,
      add_input ? x.data() : nullptr);
  Tensor output = torch::stable::new_empty(input, input.sizes());
  const int64_t rows = input.numel() / channels;

  // All threads together take few rows, so that what is between the layers fits
  // the third cache (4 MiB), but enough to read the weights for.
  const int64_t before = norm.is_there() ? channels : 0;
  const Shares shares(rows, width + before);
  const bool is_alone = shares.are_worthwhile();
  const int64_t fit =
      std::max<int64_t>(1024 * 1024 / std::max<int64_t>(width, 1), 512);
  const int64_t part = is_alone ? shares.part() : std::min(fit, rows);
  Tensor between = torch::stable::new_empty(
      input,
      {(is_alone ? shares.count() : 1) * part, width + before});
  const Threads threads = is_alone ? Threads::kThis : Threads::kAll;
  const auto run_part = [&](int64_t index, int64_t begin, int64_t end) {
    float* const hidden = numbers_of(between) + index * part * (width + before);
    float* const normed = hidden + part * width;
    const float* seen = x.data() + begin * channels;
    if (norm.is_there()) {
      norm.run(threads, seen, end - begin, normed);
      seen = normed;
    }
    run(threads, {first.task(seen, end - begin, hidden, true)}, last.weights());
    last.run(threads, hidden, begin, end, numbers_of(output));
  };
  if (is_alone) {
    shares.for_each_part(run_part);
  } else {
    for (int64_t row = 0; row < rows; row += part) {
      run_part(0, row, std::min(row + part, rows));
    }
  }
  return output;
}

}  // namespace
}  // namespace dcnv3

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CPU, m) {
  m.impl("mlp_forward", TORCH_BOX(&dcnv3::mlp_forward_cpu));
}
