// SPDX-License-Identifier: Apache-2.0
// Runs CUDA kernels on the CPU, slowly: each thread of a block is a fiber, and
// shuffles, votes and barriers are points where the threads of a warp or of the
// block meet. A thread that misses such a point while others wait there, which
// would hang or be undefined on a GPU, is an error here. Between two such
// points the threads run one after the other, in an order that the caller
// chooses: a missing barrier makes the results depend on it.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __shared__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __restrict__ __restrict
#define __launch_bounds__(...)

struct Index {
  unsigned int x;
};
inline Index blockIdx, threadIdx;

namespace dcnv3 {
// What `extern __shared__` declares. All ones (NaN) at the start of a block.
constexpr int64_t kSharedSize = 48 * 1024;
alignas(16) inline unsigned char shared_memory[kSharedSize + 1024];
}  // namespace dcnv3

class Block {
 public:
  static constexpr int kWarp = 32;
  enum State { kReady, kAtWarp, kAtBlock, kDone };

  Block(int threads, const std::function<void()>& body)
      : threads_(threads),
        body_(body),
        stacks_(static_cast<size_t>(threads) * kStackSize),
        fibers_(threads),
        states_(threads),
        phases_(threads),
        slots_(threads) {}

  // Run the body once for each thread, from the last one down if `reversed`.
  void run(bool reversed) {
    current_ = this;
    std::fill(states_.begin(), states_.end(), kReady);
    for (bool running = true; running;) {
      for (int i = 0; i < threads_; ++i) {
        thread_ = reversed ? threads_ - 1 - i : i;
        if (states_[thread_] == kReady) {
          threadIdx.x = static_cast<unsigned int>(thread_);
          resume(fibers_[thread_]);
        }
      }
      running = release();
    }
  }

  // Wait for the other threads of the warp or of the block.
  static void wait(State where) { current_->leave(where); }

  // Give this thread's value, wait for the others of the warp, take that of
  // another.
  template <typename T>
  static T exchange(T value, int distance) {
    static_assert(sizeof(T) <= 8);
    Block& block = *current_;
    const int thread = block.thread_;
    // Two sets of slots: a fast thread may reach the next shuffle before a slow
    // one has read this one's.
    const int slot = block.phases_[thread]++ % 2;
    std::memcpy(block.slots_[thread].bytes[slot], &value, sizeof(T));
    wait(kAtWarp);
    T other;
    std::memcpy(&other, block.slots_[thread ^ distance].bytes[slot], sizeof(T));
    return other;
  }

 private:
  static constexpr int kStackSize = 64 * 1024;
  struct Slots {
    char bytes[2][8];
  };

  struct Fiber {
    bool started = false;
    jmp_buf here;
  };

  // Contexts only start fibers: to switch with them takes system calls.
  void resume(Fiber& fiber) {
    if (_setjmp(scheduler_) != 0) {
      return;
    }
    if (fiber.started) {
      _longjmp(fiber.here, 1);
    }
    fiber.started = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp =
        stacks_.data() + static_cast<size_t>(thread_) * kStackSize;
    context.uc_stack.ss_size = kStackSize;
    context.uc_link = nullptr;
    makecontext(&context, &Block::start, 0);
    setcontext(&context);
  }

  void leave(State state) {
    Fiber& fiber = fibers_[thread_];
    states_[thread_] = state;
    if (_setjmp(fiber.here) == 0) {
      _longjmp(scheduler_, 1);
    }
  }

  // A fiber serves its thread in one block after the other.
  static void start() {
    for (;;) {
      current_->body_();
      current_->leave(kDone);
    }
  }

  // Let those go on who have all met. Return whether any thread is left.
  bool release() {
    int done = 0;
    int at_block = 0;
    int released = 0;
    for (int first = 0; first < threads_; first += kWarp) {
      int at_warp = 0;
      for (int thread = first; thread < first + kWarp; ++thread) {
        at_warp += states_[thread] == kAtWarp;
        at_block += states_[thread] == kAtBlock;
        done += states_[thread] == kDone;
      }
      if (at_warp == kWarp) {
        std::fill_n(states_.begin() + first, kWarp, kReady);
        released += kWarp;
      }
    }
    if (at_block == threads_) {
      std::fill(states_.begin(), states_.end(), kReady);
      released = threads_;
    }
    if (released == 0 && done != threads_) {
      throw std::runtime_error("a thread missed a shuffle or a barrier");
    }
    return done != threads_;
  }

  inline static Block* current_ = nullptr;
  int threads_;
  const std::function<void()>& body_;
  std::vector<char> stacks_;
  std::vector<Fiber> fibers_;
  std::vector<State> states_;
  std::vector<unsigned int> phases_;
  std::vector<Slots> slots_;
  jmp_buf scheduler_;
  int thread_ = 0;
};

inline void check_whole_warp(unsigned int mask) {
  if (mask != 0xffffffffu) {
    throw std::runtime_error("only whole warps are supported");
  }
}

template <typename T>
T __shfl_xor_sync(unsigned int mask, T value, int distance) {
  check_whole_warp(mask);
  return Block::exchange(value, distance);
}

inline unsigned int __ballot_sync(unsigned int mask, bool vote) {
  unsigned int votes = vote ? 1u << (threadIdx.x % Block::kWarp) : 0;
  for (int distance = 1; distance < Block::kWarp; distance *= 2) {
    votes |= __shfl_xor_sync(mask, votes, distance);
  }
  return votes;
}

inline void __syncwarp() {
  Block::wait(Block::kAtWarp);
}
inline void __syncthreads() {
  Block::wait(Block::kAtBlock);
}
inline int __popc(unsigned int bits) {
  return __builtin_popcount(bits);
}
inline unsigned int __umulhi(unsigned int a, unsigned int b) {
  return static_cast<unsigned int>((static_cast<uint64_t>(a) * b) >> 32);
}

template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}

// kernel<<<blocks, threads, shared>>>(...), with the call of the kernel as a
// closure.
inline void launch(
    int64_t blocks,
    int threads,
    int64_t shared,
    bool reversed,
    const std::function<void()>& kernel) {
  using dcnv3::shared_memory;
  if (shared > dcnv3::kSharedSize) {
    throw std::runtime_error("too much shared memory");
  }
  Block block(threads, kernel);
  for (int64_t i = 0; i < blocks; ++i) {
    blockIdx.x = static_cast<unsigned int>(reversed ? blocks - 1 - i : i);
    std::memset(shared_memory, 0xff, sizeof(shared_memory));
    block.run(reversed);
    for (int64_t byte = shared;
         byte < static_cast<int64_t>(sizeof(shared_memory));
         ++byte) {
      if (shared_memory[byte] != 0xff) {
        throw std::runtime_error("a write beyond the shared memory");
      }
    }
  }
}
