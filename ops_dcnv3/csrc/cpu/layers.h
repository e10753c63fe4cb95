// SPDX-License-Identifier: Apache-2.0
// Layers that operators of the CPU library are made of, in float32: checked,
// and run by all threads or by one for its rows.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../checks.h"
#include "capability.h"
#include "kernels.h"

namespace dcnv3 {

// A float32 tensor's numbers, contiguous, for as long as this lives.
class Numbers {
 public:
  Numbers() = default;
  Numbers(const char* name, const Tensor& tensor) : tensor_(dense(tensor)) {
    DCNV3_CHECK(
        tensor.scalar_type() == ScalarType::Float && !tensor.is_cuda(),
        name,
        ": expected float32 on the CPU, got ",
        tensor.scalar_type(),
        " on ",
        device_of(tensor));
    data_ = static_cast<const float*>(tensor_->const_data_ptr());
  }
  Numbers(
      const char* name,
      const std::optional<Tensor>& tensor,
      torch::headeronly::IntHeaderOnlyArrayRef shape) {
    if (tensor) {
      check_shape(name, *tensor, shape);
      *this = Numbers(name, *tensor);
    }
  }
  // Null where there is no tensor.
  const float* data() const { return data_; }

 private:
  std::optional<Tensor> tensor_;
  const float* data_ = nullptr;
};

// A linear layer with what goes in and comes out.
class LinearTask {
 public:
  LinearTask(const LinearSizes& sizes, const LinearPointers& pointers)
      : sizes_(sizes), pointers_(pointers) {}

  const LinearSizes& sizes() const { return sizes_; }
  int64_t items() const { return DCNV3_BEST_KERNEL(linear_items)(sizes_); }
  void run(int64_t begin, int64_t end) const {
    DCNV3_BEST_KERNEL(linear)(sizes_, pointers_, begin, end);
  }
  void run() const { run(0, items()); }

  // The same, with the weights of the task that comes next fetched meanwhile.
  LinearTask before(const LinearTask& next) const {
    LinearTask task = *this;
    task.pointers_.next = {
        next.pointers_.weight,
        next.sizes_.in_features,
        next.sizes_.out_features};
    return task;
  }

  // The same for the rows from begin to end.
  LinearTask of_rows(int64_t begin, int64_t end) const {
    LinearTask part = *this;
    part.sizes_.rows = end - begin;
    part.pointers_.input += begin * sizes_.in_features;
    part.pointers_.output += begin * sizes_.out_features;
    if (pointers_.residual) {
      part.pointers_.residual += begin * sizes_.out_features;
    }
    return part;
  }

 private:
  LinearSizes sizes_;
  LinearPointers pointers_;
};

// How rows go to threads: a share to each, taken in parts. Then what a thread
// computes from a row, in layer after layer, stays in its own cache.
class Shares {
 public:
  // width: how many numbers there are of a row on its way.
  explicit Shares(int64_t rows, int64_t width = 0)
      : rows_(rows),
        count_(torch::stable::get_num_threads()),
        size_((rows + count_ - 1) / count_),
        part_(std::min(size_, width > 0 ? kNumbers / width : size_)) {}

  // Whether a part is worth laying the weights of all layers out for. If not,
  // there are few rows, or a row has many numbers: all threads should run one
  // layer together.
  bool are_worthwhile() const { return part_ >= kRows; }
  int64_t count() const { return count_; }
  // Rows of a share that a thread takes at once.
  int64_t part() const { return part_; }

  // Call run(index, begin, end) for the rows of all shares, these in parallel.
  template <typename Run>
  void for_each_part(const Run& run) const {
    torch::stable::parallel_for(0, count_, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t end = std::min((i + 1) * size_, rows_);
        for (int64_t row = i * size_; row < end; row += part_) {
          run(i, row, std::min(row + part_, end));
        }
      }
    });
  }

 private:
  // Laying weights out for so many takes a tenth of the time of the products.
  static constexpr int64_t kRows = 96;
  static constexpr int64_t kNumbers = 256 * 1024;  // a second cache

  int64_t rows_;
  int64_t count_;
  int64_t size_;
  int64_t part_;
};

// Run layers of the same rows and as many input features, by all threads.
inline void run_by_all(const std::vector<LinearTask>& tasks) {
  const LinearSizes& sizes = tasks[0].sizes();
  const Shares shares(sizes.rows);
  if (shares.are_worthwhile()) {
    shares.for_each_part([&](int64_t, int64_t begin, int64_t end) {
      for (const LinearTask& task : tasks) {
        task.of_rows(begin, end).run();
      }
    });
    return;
  }
  int64_t items = 0;
  for (const LinearTask& task : tasks) {
    items += task.items();
  }
  const auto run = [&](int64_t begin, int64_t end) {
    for (const LinearTask& task : tasks) {
      const int64_t first = std::max<int64_t>(begin, 0);
      const int64_t last = std::min(end, task.items());
      if (first < last) {
        task.run(first, last);
      }
      begin -= task.items();
      end -= task.items();
    }
  };
  torch::stable::parallel_for(0, items, grain_size(sizes.in_features), run);
}

// A layer's parameters, checked against the features that go in.
class LinearLayer {
 public:
  LinearLayer(
      const char* weight_name,
      const Tensor& weight,
      const char* bias_name,
      const std::optional<Tensor>& bias,
      int64_t features)
      : in_features(features), weight_(weight_name, weight) {
    DCNV3_CHECK(
        weight.dim() == 2 && weight.size(1) == features && features > 0,
        weight_name,
        ": expected (out_features, ",
        features,
        "), with at least one of these, got ",
        text_of(weight.sizes()));
    out_features = weight.size(0);
    bias_ = Numbers(bias_name, bias, {out_features});
  }

  // From (rows, in_features) to (rows, out_features): x weight^T + bias, with a
  // GELU or plus the residual.
  LinearTask task(
      const float* input,
      int64_t rows,
      float* output,
      bool gelu = false,
      const float* residual = nullptr) const {
    return {
        {rows, in_features, out_features, gelu},
        {input, weight_.data(), bias_.data(), residual, output}};
  }

  int64_t in_features;
  int64_t out_features;

 private:
  Numbers weight_;
  Numbers bias_;
};

// A LayerNorm, or none.
class NormLayer {
 public:
  // From weight and bias, or from nothing.
  NormLayer(const std::vector<Tensor>& parameters, int64_t channels, double eps)
      : channels_(channels), eps_(eps) {
    DCNV3_CHECK(
        parameters.empty() || parameters.size() == 2,
        "norm: expected nothing, or weight and bias, got ",
        parameters.size(),
        " tensors");
    if (!parameters.empty()) {
      weight_ = Numbers("norm.weight", parameters[0], {channels});
      bias_ = Numbers("norm.bias", parameters[1], {channels});
    }
  }

  bool is_there() const { return weight_.data(); }

  // If it is there, normalise rows.
  void run(const float* input, int64_t rows, float* output) const {
    if (is_there()) {
      run(input, output, 0, rows);
    }
  }
  // The same by all threads.
  void run_by_all(const float* input, int64_t rows, float* output) const {
    if (is_there()) {
      // A number costs a few operations, and a root for each row.
      torch::stable::parallel_for(
          0,
          rows,
          grain_size(8 * channels_),
          [&](int64_t begin, int64_t end) { run(input, output, begin, end); });
    }
  }

 private:
  void run(const float* input, float* output, int64_t begin, int64_t end)
      const {
    DCNV3_BEST_KERNEL(norm)(
        {channels_, eps_},
        {input, weight_.data(), bias_.data(), output},
        begin,
        end);
  }

  int64_t channels_;
  double eps_;
  Numbers weight_;
  Numbers bias_;
};

inline std::vector<int64_t> shape_with(const Tensor& tensor, int64_t last) {
  const auto sizes = tensor.sizes();
  std::vector<int64_t> shape(sizes.begin(), sizes.end());
  shape.back() = last;
  return shape;
}

inline float* numbers_of(Tensor& tensor) {
  return static_cast<float*>(tensor.mutable_data_ptr());
}

}  // namespace dcnv3
