// SPDX-License-Identifier: Apache-2.0
// Bodies of the CPU kernels. Included by each kernels_*.cpp after it has chosen
// its instruction set and set DCNV3_CAPABILITY. Includes nothing itself: an
// inline function of a library header compiled here with AVX-512 could be the
// copy that the linker keeps for everyone.

namespace dcnv3 {
namespace DCNV3_CAPABILITY {

template <typename scalar_t>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

// A vector of kLanes values, mapped by the compiler to whatever registers there
// are. Loads need only the alignment of an element.
template <typename T, int kLanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T))));
};
template <typename T>
struct VectorOf<T, 1> {
  typedef T type;
};
template <typename T, int kLanes>
using Vector = typename VectorOf<T, kLanes>::type;

template <typename T, int kLanes>
inline Vector<T, kLanes> load_raw(const void* source) {
  Vector<T, kLanes> vector;
  __builtin_memcpy(&vector, source, sizeof(vector));
  return vector;
}

// Load kLanes features and widen them to the accumulator's type.
template <int kLanes>
inline Vector<double, kLanes> load(const double* source) {
  return load_raw<double, kLanes>(source);
}

template <int kLanes>
inline Vector<float, kLanes> load(const float* source) {
  return load_raw<float, kLanes>(source);
}

template <int kLanes>
inline Vector<float, kLanes> load(const c10::BFloat16* source) {
  if constexpr (kLanes == 1) {
    return static_cast<float>(*source);
  } else {
    const auto bits = __builtin_convertvector(
        load_raw<uint16_t, kLanes>(source),
        Vector<uint32_t, kLanes>);
    return (Vector<float, kLanes>)(bits << 16);
  }
}

template <int kLanes>
inline Vector<float, kLanes> load(const c10::Half* source) {
  if constexpr (kLanes == 1) {
    return static_cast<float>(*source);
  } else {
    using Bits = Vector<uint32_t, kLanes>;
    const Bits bits =
        __builtin_convertvector(load_raw<uint16_t, kLanes>(source), Bits);
    const Bits magnitude = bits & 0x7fff;
    // A half's exponent and mantissa, put at a float's place, are too small by
    // 2^(127 - 15); the product is exact, for subnormals too.
    const auto scaled = (Vector<float, kLanes>)(magnitude << 13) * 0x1p112f;
    // Infinity and NaN have exponent 31, which must become 255.
    const Bits special = (Bits)(magnitude >= 0x7c00) & 0x7f800000u;
    return (Vector<float, kLanes>)((Bits)scaled | special |
                                   ((bits & 0x8000) << 16));
  }
}

template <typename T, int kLanes>
inline T horizontal_sum(Vector<T, kLanes> vector) {
  if constexpr (kLanes == 1) {
    return vector;
  } else {
    // Pairwise, so that halves of a wide register are added as registers.
    T lanes[kLanes];
    __builtin_memcpy(lanes, &vector, sizeof(vector));
    const auto low = load_raw<T, kLanes / 2>(lanes);
    const auto high = load_raw<T, kLanes / 2>(lanes + kLanes / 2);
    return horizontal_sum<T, kLanes / 2>(low + high);
  }
}

// Heap memory of a thread; plain new, as the containers of the standard library
// are inline functions.
template <typename acc_t>
class Scratch {
 public:
  explicit Scratch(int64_t size) : size_(size), data_(new acc_t[size]) {}
  ~Scratch() { delete[] data_; }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  acc_t* data() const { return data_; }
  void zero() { __builtin_memset(data_, 0, size_ * sizeof(acc_t)); }

 private:
  int64_t size_;
  acc_t* data_;
};

template <int kLanes>
struct LaneCount {
  static constexpr int value = kLanes;
};

// Call body(channel, LaneCount<n>()) for blocks of n = 16, 4 and 1 channels
// that cover [0, channels).
template <typename Body>
inline void for_each_block(int64_t channels, const Body& body) {
  int64_t channel = 0;
  for (; channel + 16 <= channels; channel += 16) {
    body(channel, LaneCount<16>());
  }
  for (; channel + 4 <= channels; channel += 4) {
    body(channel, LaneCount<4>());
  }
  for (; channel < channels; ++channel) {
    body(channel, LaneCount<1>());
  }
}

// One pixel that a sampling point reads: where, relative to the image, and its
// weight.
template <typename acc_t>
struct Corner {
  int64_t position;
  acc_t weight;
};

// Points are gathered in chunks of this many, then applied to all channels: the
// arithmetic of positions is done once, and the chunk stays in the first cache.
constexpr int kChunkPoints = 32;

// A walk over the taps of one group of one output pixel, in the order of the
// points.
template <typename acc_t>
struct TapWalk {
  const Geometry& geometry;
  int64_t ho;
  int64_t wo;

  // Call visit(point, y, x) with the position of each tap before its offset.
  template <typename Visit>
  inline void for_each(const Visit& visit) const {
    const Geometry& g = geometry;
    const acc_t scale = static_cast<acc_t>(g.offset_scale);
    int32_t point = 0;
    for (int32_t tap_w = 0; tap_w < g.kernel_w; ++tap_w) {
      const acc_t x = tap_position<acc_t>(
          wo,
          g.stride_w,
          g.pad_w,
          g.dilation_w,
          g.kernel_w,
          tap_w,
          scale);
      for (int32_t tap_h = 0; tap_h < g.kernel_h; ++tap_h) {
        if (g.is_removed(tap_h, tap_w)) {
          continue;
        }
        const acc_t y = tap_position<acc_t>(
            ho,
            g.stride_h,
            g.pad_h,
            g.dilation_h,
            g.kernel_h,
            tap_h,
            scale);
        visit(point, y, x);
        ++point;
      }
    }
  }
};

template <typename scalar_t, typename acc_t>
inline void accumulate(
    const Corner<acc_t>* corners,
    int count,
    const scalar_t* input,
    int64_t channels,
    acc_t* sums) {
  for_each_block(channels, [&](int64_t channel, auto lane_count) {
    constexpr int kLanes = decltype(lane_count)::value;
    auto sum = load_raw<acc_t, kLanes>(sums + channel);
    for (int i = 0; i < count; ++i) {
      sum += corners[i].weight *
             load<kLanes>(input + corners[i].position + channel);
    }
    __builtin_memcpy(sums + channel, &sum, sizeof(sum));
  });
}

// Add weight * grads to the gradient of a corner; return the dot product of
// grads with the corner's features.
template <typename scalar_t, typename acc_t>
inline acc_t add_corner(
    const scalar_t* input,
    const acc_t* grads,
    acc_t weight,
    acc_t* sums,
    int64_t channels) {
  acc_t dot = 0;
  for_each_block(channels, [&](int64_t channel, auto lane_count) {
    constexpr int kLanes = decltype(lane_count)::value;
    const auto grad = load_raw<acc_t, kLanes>(grads + channel);
    const auto sum = load_raw<acc_t, kLanes>(sums + channel) + weight * grad;
    __builtin_memcpy(sums + channel, &sum, sizeof(sum));
    dot += horizontal_sum<acc_t, kLanes>(grad * load<kLanes>(input + channel));
  });
  return dot;
}

template <typename scalar_t, typename point_t>
void forward(
    const Geometry& g,
    const ForwardPointers<scalar_t, point_t>& p,
    int64_t begin,
    int64_t end) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const acc_t scale = static_cast<acc_t>(g.offset_scale);
  const int64_t channels = g.group_channels;
  const int64_t column_step = g.channels();
  const int64_t row_step = g.width * column_step;
  const int32_t points = g.points();
  Corner<acc_t> corners[kChunkPoints * 4];
  Scratch<acc_t> sums(channels);

  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / g.out_height;
    const int64_t ho = item % g.out_height;
    for (int64_t wo = 0; wo < g.out_width; ++wo) {
      const int64_t pixel = item * g.out_width + wo;
      for (int64_t group = 0; group < g.groups; ++group) {
        const int64_t q = pixel * g.groups + group;
        const point_t* offset = p.offset + q * points * 2;
        const point_t* mask = p.mask + q * points;
        const scalar_t* input =
            p.input + n * g.height * row_step + group * channels;
        int count = 0;
        sums.zero();
        TapWalk<acc_t>{g, ho, wo}.for_each([&](int32_t k, acc_t y, acc_t x) {
          Sample<acc_t> sample;
          if (!locate<acc_t>(
                  y + static_cast<acc_t>(offset[2 * k + 1]) * scale,
                  x + static_cast<acc_t>(offset[2 * k]) * scale,
                  g.height,
                  g.width,
                  sample)) {
            return;
          }
          const acc_t weight = static_cast<acc_t>(mask[k]);
          for (int corner = 0; corner < 4; ++corner) {
            const int64_t row = sample.row(corner);
            const int64_t column = sample.column(corner);
            if (row >= 0 && row < g.height && column >= 0 && column < g.width) {
              corners[count++] = {
                  row * row_step + column * column_step,
                  weight * sample.weight(corner)};
            }
          }
          if (count > 4 * (kChunkPoints - 1)) {
            accumulate(corners, count, input, channels, sums.data());
            count = 0;
          }
        });
        accumulate(corners, count, input, channels, sums.data());
        scalar_t* output = p.output + q * channels;
        for (int64_t channel = 0; channel < channels; ++channel) {
          output[channel] = static_cast<scalar_t>(sums.data()[channel]);
        }
      }
    }
  }
}

template <typename scalar_t, typename point_t>
void backward(
    const Geometry& g,
    const BackwardPointers<scalar_t, point_t>& p,
    int64_t begin,
    int64_t end) {
  using acc_t = typename Accumulator<scalar_t>::type;
  // float and double gradients are summed in place; half precision in a scratch
  // image of the accumulator's type, rounded once at the end.
  constexpr bool kInPlace = sizeof(scalar_t) == sizeof(acc_t);
  const acc_t scale = static_cast<acc_t>(g.offset_scale);
  const int64_t channels = g.group_channels;
  const int64_t column_step = g.channels();
  const int64_t row_step = g.width * column_step;
  const int64_t sum_column_step = kInPlace ? column_step : channels;
  const int32_t points = g.points();
  Scratch<acc_t> image(kInPlace ? 0 : g.height * g.width * channels);
  Scratch<acc_t> grads(channels);

  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / g.groups;
    const int64_t group = item % g.groups;
    const int64_t image_start = n * g.height * row_step + group * channels;
    const scalar_t* input = p.input + image_start;
    acc_t* sums;
    if constexpr (kInPlace) {
      sums = p.grad_input + image_start;
    } else {
      image.zero();
      sums = image.data();
    }
    for (int64_t ho = 0; ho < g.out_height; ++ho) {
      for (int64_t wo = 0; wo < g.out_width; ++wo) {
        const int64_t pixel = (n * g.out_height + ho) * g.out_width + wo;
        const int64_t q = pixel * g.groups + group;
        const point_t* offset = p.offset + q * points * 2;
        const point_t* mask = p.mask + q * points;
        point_t* grad_offset = p.grad_offset + q * points * 2;
        point_t* grad_mask = p.grad_mask + q * points;
        for (int64_t channel = 0; channel < channels; ++channel) {
          grads.data()[channel] =
              static_cast<acc_t>(p.grad_output[q * channels + channel]);
        }
        TapWalk<acc_t>{g, ho, wo}.for_each([&](int32_t k, acc_t y, acc_t x) {
          Sample<acc_t> sample;
          if (!locate<acc_t>(
                  y + static_cast<acc_t>(offset[2 * k + 1]) * scale,
                  x + static_cast<acc_t>(offset[2 * k]) * scale,
                  g.height,
                  g.width,
                  sample)) {
            grad_offset[2 * k] = grad_offset[2 * k + 1] = grad_mask[k] = 0;
            return;
          }
          const acc_t weight = static_cast<acc_t>(mask[k]);
          acc_t dots[4] = {0, 0, 0, 0};
          for (int corner = 0; corner < 4; ++corner) {
            const int64_t row = sample.row(corner);
            const int64_t column = sample.column(corner);
            if (row < 0 || row >= g.height || column < 0 || column >= g.width) {
              continue;
            }
            dots[corner] = add_corner<scalar_t, acc_t>(
                input + row * row_step + column * column_step,
                grads.data(),
                weight * sample.weight(corner),
                sums + (row * g.width + column) * sum_column_step,
                channels);
          }
          grad_mask[k] = static_cast<point_t>(sample.value(dots));
          grad_offset[2 * k] =
              static_cast<point_t>(weight * scale * sample.grad_x(dots));
          grad_offset[2 * k + 1] =
              static_cast<point_t>(weight * scale * sample.grad_y(dots));
        });
      }
    }
    if constexpr (!kInPlace) {
      scalar_t* grad_input = p.grad_input + image_start;
      for (int64_t i = 0; i < g.height * g.width; ++i) {
        for (int64_t channel = 0; channel < channels; ++channel) {
          grad_input[i * column_step + channel] =
              static_cast<scalar_t>(sums[i * channels + channel]);
        }
      }
    }
  }
}

#define DCNV3_INSTANTIATE(scalar_t, point_t)      \
  template void forward(                          \
      const Geometry&,                            \
      const ForwardPointers<scalar_t, point_t>&,  \
      int64_t,                                    \
      int64_t);                                   \
  template void backward(                         \
      const Geometry&,                            \
      const BackwardPointers<scalar_t, point_t>&, \
      int64_t,                                    \
      int64_t);
DCNV3_FOR_EACH_DTYPES(DCNV3_INSTANTIATE)
#undef DCNV3_INSTANTIATE

}  // namespace DCNV3_CAPABILITY
}  // namespace dcnv3
