// SPDX-License-Identifier: Apache-2.0
// Layers that operators of the CPU library are made of, in float32: checked,
// and run by all threads or by one for its rows.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>
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
  // Null where there is no tensor.
  const float* data() const { return data_; }

 private:
  std::optional<Tensor> tensor_;
  const float* data_ = nullptr;
};

constexpr int64_t kAny = -1;

// Weight and bias of a layer, as a list of two tensors; or of none, if the
// layer may be absent. A side of the weight's shape may be kAny. The bias has
// a number for each of the first side.
class Parameters {
 public:
  Parameters(
      const char* name,
      const std::vector<Tensor>& tensors,
      std::initializer_list<int64_t> shape,
      bool may_be_absent = false) {
    DCNV3_CHECK(
        tensors.size() == 2 || (may_be_absent && tensors.empty()),
        name,
        ": expected weight and bias",
        may_be_absent ? ", or nothing" : "",
        ", got ",
        tensors.size(),
        " tensors");
    if (tensors.empty()) {
      return;
    }
    const auto sizes = tensors[0].sizes();
    const auto fits = [](int64_t size, int64_t expected) {
      return size == expected || expected == kAny;
    };
    DCNV3_CHECK(
        std::equal(
            sizes.begin(),
            sizes.end(),
            shape.begin(),
            shape.end(),
            fits),
        name,
        ".weight: expected ",
        text_with_any(shape),
        ", got ",
        text_of(sizes));
    DCNV3_CHECK(
        tensors[1].dim() == 1 && tensors[1].size(0) == sizes[0],
        name,
        ".bias: expected (",
        sizes[0],
        "), got ",
        text_of(tensors[1].sizes()));
    size_ = sizes[0];
    weight_ = Numbers(name, tensors[0]);
    bias_ = Numbers(name, tensors[1]);
  }

  bool are_there() const { return weight_.data(); }
  int64_t size() const { return size_; }
  const float* weight() const { return weight_.data(); }
  const float* bias() const { return bias_.data(); }

 private:
  static std::string text_with_any(std::initializer_list<int64_t> shape) {
    std::string text;
    for (const int64_t size : shape) {
      text += text.empty() ? "(" : ", ";
      text += size == kAny ? "any" : std::to_string(size);
    }
    return text + ")";
  }

  int64_t size_ = 0;
  Numbers weight_;
  Numbers bias_;
};

// Who runs a layer of some rows: the thread that calls, or all together.
enum class Threads { kThis, kAll };

// Call run(begin, end) for parts of the rows, each of at least `grain`.
template <typename Run>
void for_rows(Threads threads, int64_t rows, int64_t grain, const Run& run) {
  if (threads == Threads::kAll) {
    torch::stable::parallel_for(0, rows, grain, run);
  } else {
    run(0, rows);
  }
}

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

// A linear layer with what goes in and comes out.
class LinearTask {
 public:
  LinearTask(const LinearSizes& sizes, const LinearPointers& pointers)
      : sizes_(sizes), pointers_(pointers) {}

  const LinearSizes& sizes() const { return sizes_; }
  Weights weights() const {
    return {pointers_.weight, sizes_.in_features, sizes_.out_features};
  }
  int64_t items() const { return DCNV3_BEST_KERNEL(linear_items)(sizes_); }
  void run(int64_t begin, int64_t end) const {
    DCNV3_BEST_KERNEL(linear)(sizes_, pointers_, begin, end);
  }

  // The same, with weights that are needed next fetched meanwhile.
  LinearTask before(const Weights& next) const {
    LinearTask task = *this;
    task.pointers_.next = next;
    return task;
  }

  // The same for the rows from begin to end.
  LinearTask of_rows(int64_t begin, int64_t end) const {
    LinearTask part = *this;
    part.sizes_.rows = end - begin;
    part.pointers_.input += begin * sizes_.in_features;
    part.pointers_.output += begin * sizes_.out_features;
    if (pointers_.ending.added) {
      part.pointers_.ending.added += begin * sizes_.out_features;
    }
    return part;
  }

 private:
  LinearSizes sizes_;
  LinearPointers pointers_;
};

// Run layers of the same rows and as many input features. `next` comes after.
inline void run(
    Threads threads,
    const std::vector<LinearTask>& tasks,
    const Weights& next = {}) {
  const LinearSizes& sizes = tasks[0].sizes();
  const auto run_rows = [&](int64_t begin, int64_t end) {
    for (size_t i = 0; i < tasks.size(); ++i) {
      const bool is_last = i + 1 == tasks.size();
      const LinearTask task = tasks[i].of_rows(begin, end);
      task.before(is_last ? next : tasks[i + 1].weights()).run(0, task.items());
    }
  };
  if (threads == Threads::kThis) {
    run_rows(0, sizes.rows);
    return;
  }
  const Shares shares(sizes.rows);
  if (shares.are_worthwhile()) {
    shares.for_each_part(
        [&](int64_t, int64_t begin, int64_t end) { run_rows(begin, end); });
    return;
  }
  int64_t items = 0;
  for (const LinearTask& task : tasks) {
    items += task.items();
  }
  const auto run_items = [&](int64_t begin, int64_t end) {
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
  torch::stable::parallel_for(
      0,
      items,
      grain_size(sizes.in_features),
      run_items);
}

// x weight^T + bias, from (rows, in_features) to (rows, out_features).
class LinearLayer {
 public:
  LinearLayer(
      const char* name,
      const std::vector<Tensor>& parameters,
      int64_t out_features,
      int64_t in_features,
      bool may_be_absent = false)
      : in_features_(in_features),
        parameters_(
            name,
            parameters,
            {out_features, in_features},
            may_be_absent) {}

  bool is_there() const { return parameters_.are_there(); }
  int64_t out_features() const { return parameters_.size(); }

  // With a GELU, or with an ending.
  LinearTask task(
      const float* input,
      int64_t rows,
      float* output,
      bool gelu = false,
      const Ending& ending = {}) const {
    return {
        {rows, in_features_, out_features(), gelu},
        {input, parameters_.weight(), parameters_.bias(), output, ending}};
  }

 private:
  int64_t in_features_;
  Parameters parameters_;
};

// A LayerNorm over channels, or none.
class NormLayer {
 public:
  NormLayer(
      const char* name,
      const std::vector<Tensor>& parameters,
      int64_t channels,
      double eps)
      : channels_(channels),
        eps_(eps),
        parameters_(name, parameters, {channels}, true) {}

  bool is_there() const { return parameters_.are_there(); }

  // Normalise rows. The output may be the input.
  void run(
      Threads threads,
      const float* input,
      int64_t rows,
      float* output,
      const Ending& ending = {}) const {
    const NormSizes sizes{channels_, eps_};
    const NormPointers pointers{
        input,
        parameters_.weight(),
        parameters_.bias(),
        output,
        ending};
    // A number costs a few operations, and a root for each row.
    for_rows(
        threads,
        rows,
        grain_size(8 * channels_),
        [&](int64_t begin, int64_t end) {
          DCNV3_BEST_KERNEL(norm)(sizes, pointers, begin, end);
        });
  }

 private:
  int64_t channels_;
  double eps_;
  Parameters parameters_;
};

// How a residual branch ends: its last linear layer, a norm, factors on the
// channels and the sum with the input, of which the last three may be absent.
class LastLayer {
 public:
  LastLayer(
      const LinearLayer& linear,
      const NormLayer& norm,
      const std::optional<Tensor>& scale,
      const float* added)
      : linear_(linear), norm_(norm), added_(added) {
    if (scale) {
      check_shape("scale", *scale, {linear.out_features()});
      scale_ = Numbers("scale", *scale);
    }
  }

  // From what comes before for the rows from begin to end, to these rows of
  // the output.
  void run(
      Threads threads,
      const float* input,
      int64_t begin,
      int64_t end,
      float* output) const {
    const int64_t at = begin * linear_.out_features();
    const Ending ending{scale_.data(), added_ ? added_ + at : nullptr};
    const int64_t rows = end - begin;
    float* const target = output + at;
    if (norm_.is_there()) {
      dcnv3::run(threads, {linear_.task(input, rows, target)});
      norm_.run(threads, target, rows, target, ending);
    } else {
      dcnv3::run(threads, {linear_.task(input, rows, target, false, ending)});
    }
  }

  Weights weights() const {
    return linear_.task(nullptr, 0, nullptr).weights();
  }

 private:
  LinearLayer linear_;
  NormLayer norm_;
  Numbers scale_;
  const float* added_;
};

inline float* numbers_of(Tensor& tensor) {
  return static_cast<float*>(tensor.mutable_data_ptr());
}

}  // namespace dcnv3
