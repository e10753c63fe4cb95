// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels as plain functions for test_cuda_on_cpu.py.
#include "cuda_on_cpu.h"
// After it, as the kernels use what it defines.
#include "backward.cuh"
#include "branch.cuh"
#include "dispatch.cuh"
#include "forward.cuh"
#include "gather.cuh"

namespace {

using namespace dcnv3;

// What the test asks for, as in the ctypes.Structure of its Python part. Any
// kernel can be forced upon a call that a more special one would serve.
struct Call {
  Geometry g;
  const void* input;
  const void* offset;
  const void* mask;
  const void* grad_output;  // null for a forward
  void* results[3];
  int32_t scalar;  // 0 float64, 1 float32, 2 float16, 3 bfloat16
  int32_t point;
  bool any_taps;
  bool narrow;
  bool deterministic;
  bool reversed;
  char kernel[64];  // the answer: which kernel ran
  char error[256];
};

template <typename Traits>
void note_kernel(Call& c) {
  int points = 0;
  if constexpr (Traits::Taps::kFixed) {
    points = Traits::Taps::kPoints;
  }
  std::snprintf(
      c.kernel,
      sizeof(c.kernel),
      "points %d, channels %d",
      points,
      Traits::kVec);
}

struct RunForward {
  Call& c;
  template <typename Traits>
  void run() const {
    using scalar_t = typename Traits::scalar_t;
    using point_t = typename Traits::point_t;
    note_kernel<Traits>(c);
    const ForwardPointers<scalar_t, point_t> pointers{
        static_cast<const scalar_t*>(c.input),
        static_cast<const point_t*>(c.offset),
        static_cast<const point_t*>(c.mask),
        static_cast<scalar_t*>(c.results[0])};
    const SiteOrder order = Traits::order(c.g);
    const TapShifts<typename Traits::acc_t, typename Traits::Taps> shifts(c.g);
    const int per_block = Traits::kBlockSize / order.team;
    launch(
        (order.sites + per_block - 1) / per_block,
        Traits::kBlockSize,
        Traits::shared_bytes(order),
        c.reversed,
        [&] { forward_kernel<Traits>(c.g, order, pointers, shifts); });
  }
};

struct RunBackward {
  Call& c;
  template <typename Traits>
  void run() const {
    using scalar_t = typename Traits::scalar_t;
    using point_t = typename Traits::point_t;
    using acc_t = typename Traits::acc_t;
    note_kernel<Traits>(c);
    const BackwardPointers<scalar_t, point_t> pointers{
        static_cast<const scalar_t*>(c.input),
        static_cast<const point_t*>(c.offset),
        static_cast<const point_t*>(c.mask),
        static_cast<const scalar_t*>(c.grad_output),
        c.deterministic ? nullptr : static_cast<acc_t*>(c.results[0]),
        static_cast<point_t*>(c.results[1]),
        static_cast<point_t*>(c.results[2])};
    const SiteOrder order = Traits::order(c.g);
    const TapShifts<acc_t, typename Traits::Taps> shifts(c.g);
    const int per_block = Traits::kBlockSize / order.team;
    launch(
        (order.sites + per_block - 1) / per_block,
        Traits::kBlockSize,
        Traits::shared_bytes(order),
        c.reversed,
        [&] { backward_kernel<Traits>(c.g, order, pointers, shifts); });
  }
};

template <typename scalar_t, typename point_t>
void run_gather(const Call& c) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const GatherPointers<scalar_t, point_t> pointers{
      static_cast<const point_t*>(c.offset),
      static_cast<const point_t*>(c.mask),
      static_cast<const scalar_t*>(c.grad_output),
      static_cast<scalar_t*>(c.results[0])};
  const Tiles<acc_t> tiles(c.g);
  const TapShifts<acc_t, AnyTaps> shifts(c.g);
  launch(
      tiles.blocks,
      Tiles<acc_t>::kBlockSize,
      sizeof(GatherShared<acc_t>),
      c.reversed,
      [&] { gather_kernel(c.g, tiles, pointers, shifts); });
}

template <
    template <typename, typename, int, typename> class Traits,
    typename scalar_t,
    typename point_t,
    typename Run>
void choose(const Call& c, const Run& run) {
  using Narrow = Traits<scalar_t, point_t, 1, AnyTaps>;
  if (c.narrow) {
    run.template run<Narrow>();
  } else if (c.any_taps) {
    run.template run<Traits<scalar_t, point_t, Narrow::kWide, AnyTaps>>();
  } else {
    dispatch_taps<Traits, scalar_t, point_t>(c.g, run);
  }
}

template <typename scalar_t, typename point_t>
void run(Call& c) {
  if (!c.grad_output) {
    choose<ForwardTraits, scalar_t, point_t>(c, RunForward{c});
    return;
  }
  choose<BackwardTraits, scalar_t, point_t>(c, RunBackward{c});
  if (c.deterministic) {
    run_gather<scalar_t, point_t>(c);
  }
}

// The same for the depthwise branch.
struct BranchCall {
  BranchSizes sizes;
  const void* input;
  const void* parameters[4];  // weight, bias, norm_weight, norm_bias
  void* output;
  int32_t scalar;
  int32_t parameter;
  bool reversed;
  char kernel[64];
  char error[256];
};

template <typename scalar_t, typename param_t>
struct RunBranch {
  BranchCall& c;
  template <typename Traits>
  void run() const {
    std::snprintf(
        c.kernel,
        sizeof(c.kernel),
        "side %d, channels %d, run %d",
        Traits::kSide,
        Traits::kVec,
        Traits::kRun);
    const auto parameter = [&](int index) {
      return static_cast<const param_t*>(c.parameters[index]);
    };
    const BranchPointers<scalar_t, param_t> pointers{
        static_cast<const scalar_t*>(c.input),
        parameter(0),
        parameter(1),
        parameter(2),
        parameter(3),
        static_cast<scalar_t*>(c.output)};
    const BranchTiles tiles = BranchTiles::make<Traits>(c.sizes);
    launch(
        tiles.blocks,
        Traits::kBlockSize,
        Traits::shared_bytes(tiles.pixels, c.sizes.channels),
        c.reversed,
        [&] { branch_kernel<Traits>(c.sizes, tiles, pointers); });
  }
};

template <typename scalar_t, typename param_t>
void run(BranchCall& c) {
  if (!dispatch_branch<scalar_t, param_t>(
          c.sizes,
          RunBranch<scalar_t, param_t>{c})) {
    throw std::runtime_error("no kernel fits");
  }
}

// Call run() for the dtypes of a call. Returns 0, or 1 with what is wrong in
// call.error.
template <typename AnyCall>
int run_for_dtypes(AnyCall& call, int scalar, int other) {
  try {
    switch (scalar * 10 + other) {
      case 0:
        run<double, double>(call);
        break;
      case 11:
        run<float, float>(call);
        break;
      case 22:
        run<c10::Half, c10::Half>(call);
        break;
      case 21:
        run<c10::Half, float>(call);
        break;
      case 33:
        run<c10::BFloat16, c10::BFloat16>(call);
        break;
      case 31:
        run<c10::BFloat16, float>(call);
        break;
      default:
        throw std::runtime_error("these dtypes are not built");
    }
  } catch (const std::exception& caught) {
    std::strncpy(call.error, caught.what(), sizeof(call.error) - 1);
    return 1;
  }
  return 0;
}

}  // namespace

extern "C" int run_on_cpu(Call* call) {
  return run_for_dtypes(*call, call->scalar, call->point);
}

extern "C" int branch_on_cpu(BranchCall* call) {
  return run_for_dtypes(*call, call->scalar, call->parameter);
}

// (n, ho, wo, group, q) of a site, counted in 32 or 64 bits.
extern "C" void
site_on_cpu(const Geometry* g, int64_t index, int narrow, int64_t* out) {
  using Traits = ForwardTraits<c10::Half, c10::Half, 8, AnyTaps>;
  const auto write = [&](const auto& site) {
    out[0] = site.n;
    out[1] = site.ho;
    out[2] = site.wo;
    out[3] = site.group;
    out[4] = site.q;
  };
  if (narrow) {
    write(Site<int32_t>(*g, Traits::order(*g), static_cast<int32_t>(index)));
  } else {
    write(Site<int64_t>(*g, Traits::order(*g), index));
  }
}

extern "C" int fits_on_cpu(const Geometry* g) {
  return fits_32_bits(*g);
}
