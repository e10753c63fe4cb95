// SPDX-License-Identifier: Apache-2.0
// What every launch needs: the device and stream of a tensor, a grid, a check.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../checks.h"

namespace dcnv3 {

// Makes the device of a tensor current while it lives, and knows its current
// stream.
class LaunchContext {
 public:
  explicit LaunchContext(const Tensor& tensor)
      : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    // nullptr is valid: the default stream.
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

// Blocks for `items` when a block does `per_block` of them.
inline unsigned int grid_size(int64_t items, int64_t per_block) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  DCNV3_CHECK(
      blocks <= std::numeric_limits<int32_t>::max(),
      "input: expected at most 2^31 - 1 blocks of work, got ",
      blocks);
  return static_cast<unsigned int>(blocks);
}

// A contiguous tensor that starts at a multiple of 16 bytes, as wide loads
// need. A tensor of its own always does; a slice of another may not.
inline Tensor to_dense(const Tensor& tensor) {
  const Tensor packed = dense(tensor);
  const bool aligned =
      reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % 16 == 0;
  return aligned ? packed : torch::stable::clone(packed);
}

}  // namespace dcnv3
