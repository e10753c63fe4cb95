// SPDX-License-Identifier: Apache-2.0
// Runs CUDA kernels on the CPU, slowly: each lane of a warp is a fiber, and a
// shuffle is a point where all lanes of the warp meet. Enough for kernels
// without shared memory. A lane that misses a shuffle which the others wait
// for, which would hang or be undefined on a GPU, is an error here.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __restrict__ __restrict
#define __launch_bounds__(threads)

struct Index {
  unsigned int x;
};
inline Index blockIdx, threadIdx;

class Warp {
 public:
  static constexpr int kLanes = 32;

  // Run body(lane) for all lanes.
  static void run(const std::function<void(int)>& body) {
    Warp warp(body);
    current_ = &warp;
    for (int running = kLanes; running > 0;) {
      int finished = 0;
      for (int lane = 0; lane < kLanes; ++lane) {
        warp.lane_ = lane;
        swapcontext(&warp.scheduler_, &warp.fibers_[lane]);
        finished += warp.done_[lane];
      }
      if (finished != 0 && finished != kLanes) {
        throw std::runtime_error("a lane missed a shuffle of its warp");
      }
      running = kLanes - finished;
    }
  }

  // Give this lane's value, wait for the others, take that of lane ^ distance.
  template <typename T>
  static T exchange(T value, int distance) {
    static_assert(sizeof(T) <= 8);
    Warp& warp = *current_;
    const int lane = warp.lane_;
    // Two sets of slots: a fast lane may reach the next shuffle before a slow
    // one has read this one's.
    const int slot = warp.phase_[lane]++ % 2;
    std::memcpy(warp.slots_[slot][lane], &value, sizeof(T));
    swapcontext(&warp.fibers_[lane], &warp.scheduler_);
    T other;
    std::memcpy(&other, warp.slots_[slot][lane ^ distance], sizeof(T));
    return other;
  }

 private:
  static constexpr int kStackSize = 64 * 1024;

  explicit Warp(const std::function<void(int)>& body)
      : body_(body), stacks_(kLanes * kStackSize) {
    for (int lane = 0; lane < kLanes; ++lane) {
      getcontext(&fibers_[lane]);
      fibers_[lane].uc_stack.ss_sp = stacks_.data() + lane * kStackSize;
      fibers_[lane].uc_stack.ss_size = kStackSize;
      fibers_[lane].uc_link = &scheduler_;
      makecontext(&fibers_[lane], &Warp::start, 0);
    }
  }

  static void start() {
    const int lane = current_->lane_;
    current_->body_(lane);
    current_->done_[lane] = true;
  }

  inline static Warp* current_ = nullptr;
  const std::function<void(int)>& body_;
  std::vector<char> stacks_;
  ucontext_t scheduler_;
  ucontext_t fibers_[kLanes];
  char slots_[2][kLanes][8];
  unsigned int phase_[kLanes] = {};
  bool done_[kLanes] = {};
  int lane_ = 0;
};

template <typename T>
T __shfl_xor_sync(unsigned int mask, T value, int distance) {
  if (mask != 0xffffffffu) {
    throw std::runtime_error("only shuffles of whole warps are supported");
  }
  return Warp::exchange(value, distance);
}

template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}

// kernel<<<blocks, threads>>>(...), with the call of the kernel as a closure.
inline void
launch(int64_t blocks, int threads, const std::function<void()>& kernel) {
  for (int64_t block = 0; block < blocks; ++block) {
    for (int first = 0; first < threads; first += Warp::kLanes) {
      Warp::run([&](int lane) {
        blockIdx.x = static_cast<unsigned int>(block);
        threadIdx.x = static_cast<unsigned int>(first + lane);
        kernel();
      });
    }
  }
}
