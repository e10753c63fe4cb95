// SPDX-License-Identifier: Apache-2.0
// Registers full of numbers, for the bodies of the CPU kernels. Included by
// each kernels_*.cpp after it has chosen its instruction set and set
// DCNV3_CAPABILITY and DCNV3_VECTOR_BYTES. Includes nothing itself: an inline
// function of a library header compiled here with AVX-512 could be the copy
// that the linker keeps for everyone. (Those of immintrin.h have no copy.)
#pragma once

namespace dcnv3 {
namespace DCNV3_CAPABILITY {

template <typename scalar_t>
struct Accumulator {
  using type = float;
  using integer = int32_t;  // of the same size
};
template <>
struct Accumulator<double> {
  using type = double;
  using integer = int64_t;
};

// A vector of lanes values, mapped by the compiler to whatever registers there
// are. Loads need only the alignment of an element.
template <typename T, int lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(lanes * sizeof(T))));
};
template <typename T, int lanes>
using Vector = typename VectorOf<T, lanes>::type;

// What fits one register; at least four, one for each corner of a sample.
template <typename acc_t>
constexpr int kLanes =
    DCNV3_VECTOR_BYTES / sizeof(acc_t) < 4 ? 4
                                           : DCNV3_VECTOR_BYTES / sizeof(acc_t);
template <typename acc_t>
using Lanes = Vector<acc_t, kLanes<acc_t>>;
template <typename acc_t>
using Integers = Vector<typename Accumulator<acc_t>::integer, kLanes<acc_t>>;

template <typename T, int lanes>
inline Vector<T, lanes> load_raw(const void* source) {
  Vector<T, lanes> vector;
  __builtin_memcpy(&vector, source, sizeof(vector));
  return vector;
}

template <typename acc_t>
inline void store(acc_t* target, Lanes<acc_t> vector) {
  __builtin_memcpy(target, &vector, sizeof(vector));
}

// A register of one number. The difference to zero is the number itself, so no
// arithmetic is left; a sum would change -0.
template <typename acc_t>
inline Lanes<acc_t> fill(acc_t number) {
  return number - Lanes<acc_t>{};
}

template <typename acc_t>
inline void store_integers(
    typename Accumulator<acc_t>::integer* target,
    Integers<acc_t> vector) {
  __builtin_memcpy(target, &vector, sizeof(vector));
}

// Load a register of features, widened to the accumulator's type.
inline Lanes<double> load(const double* source) {
  return load_raw<double, kLanes<double>>(source);
}

inline Lanes<float> load(const float* source) {
  return load_raw<float, kLanes<float>>(source);
}

inline Lanes<float> load(const c10::BFloat16* source) {
  constexpr int lanes = kLanes<float>;
  const auto bits = __builtin_convertvector(
      load_raw<uint16_t, lanes>(source),
      Vector<uint32_t, lanes>);
  return (Lanes<float>)(bits << 16);
}

inline Lanes<float> load(const c10::Half* source) {
  constexpr int lanes = kLanes<float>;
  using Bits = Vector<uint32_t, lanes>;
  const Bits bits =
      __builtin_convertvector(load_raw<uint16_t, lanes>(source), Bits);
  const Bits magnitude = bits & 0x7fff;
  // A half's exponent and mantissa, put at a float's place, are too small by
  // 2^(127 - 15); the product is exact, for subnormals too.
  const auto scaled = (Lanes<float>)(magnitude << 13) * 0x1p112f;
  // Infinity and NaN have exponent 31, which must become 255.
  const Bits special = (Bits)(magnitude >= 0x7c00) & 0x7f800000u;
  return (Lanes<float>)((Bits)scaled | special | ((bits & 0x8000) << 16));
}

// Load count < kLanes features; the other lanes are zero.
template <typename acc_t, typename scalar_t>
inline Lanes<acc_t> load_some(const scalar_t* source, int64_t count) {
  scalar_t padded[kLanes<acc_t>];
  __builtin_memset(static_cast<void*>(padded), 0, sizeof(padded));
  __builtin_memcpy(
      static_cast<void*>(padded),
      source,
      count * sizeof(scalar_t));
  return load(padded);
}

// Load up to a register of features: of the last ones, the lanes beyond are
// zero.
template <typename acc_t, typename scalar_t>
inline Lanes<acc_t> load_up_to(const scalar_t* source, int64_t left) {
  constexpr int lanes = kLanes<acc_t>;
  return left < lanes ? load_some<acc_t>(source, left) : load(source);
}

// Store up to a register, without the lanes beyond the last feature.
template <typename acc_t>
inline void store_up_to(acc_t* target, Lanes<acc_t> vector, int64_t left) {
  if (left < kLanes<acc_t>) {
    __builtin_memcpy(target, &vector, left * sizeof(acc_t));
  } else {
    store<acc_t>(target, vector);
  }
}

// The channels of a row up to a whole number of the widest registers.
inline int64_t padded(int64_t channels) {
  return (channels + 15) / 16 * 16;
}

// End a branch for a register of channels, of which so many are left.
inline Lanes<float>
ended(Lanes<float> x, const Ending& ending, int64_t channel, int64_t left) {
  if (ending.factors) {
    x *= load_up_to<float>(ending.factors + channel, left);
  }
  if (ending.added) {
    x += load_up_to<float>(ending.added + channel, left);
  }
  return x;
}

// The even lanes of two vectors, or the odd ones: first of a, then of b.
template <typename acc_t, int first>
inline Lanes<acc_t> every_second(Lanes<acc_t> a, Lanes<acc_t> b) {
  constexpr int lanes = kLanes<acc_t>;
#if defined(__clang__)
  Lanes<acc_t> result;
  for (int i = 0; i < lanes / 2; ++i) {
    result[i] = a[2 * i + first];
    result[lanes / 2 + i] = b[2 * i + first];
  }
  return result;
#else
  Integers<acc_t> index;
  for (int i = 0; i < lanes; ++i) {
    index[i] = 2 * i + first;
  }
  return __builtin_shuffle(a, b, index);
#endif
}

// Pairs, or other units, of lanes from a and b in turn; from the first half of
// each, or from the second.
template <typename acc_t, int unit, int half>
inline Lanes<acc_t> zip(Lanes<acc_t> a, Lanes<acc_t> b) {
  constexpr int lanes = kLanes<acc_t>;
#if defined(__clang__)
  Lanes<acc_t> result;
  for (int i = 0; i < lanes; ++i) {
    const int source = i / (2 * unit) * unit + i % unit + half * lanes / 2;
    result[i] = i / unit % 2 ? b[source] : a[source];
  }
  return result;
#else
  Integers<acc_t> index;
  for (int i = 0; i < lanes; ++i) {
    const int source = i / (2 * unit) * unit + i % unit + half * lanes / 2;
    index[i] = i / unit % 2 ? lanes + source : source;
  }
  return __builtin_shuffle(a, b, index);
#endif
}

// Swap the rows and the columns of a square of numbers.
template <typename acc_t>
inline void transpose(Lanes<acc_t> (&rows)[kLanes<acc_t>]) {
  constexpr int half = kLanes<acc_t> / 2;
  for (int step = 1; step < kLanes<acc_t>; step *= 2) {
    Lanes<acc_t> next[2 * half];
    for (int i = 0; i < half; ++i) {
      next[2 * i] = zip<acc_t, 1, 0>(rows[i], rows[half + i]);
      next[2 * i + 1] = zip<acc_t, 1, 1>(rows[i], rows[half + i]);
    }
    for (int i = 0; i < 2 * half; ++i) {
      rows[i] = next[i];
    }
  }
}

// Store four registers lane by lane: a[0], b[0], c[0], d[0], a[1] and so on.
template <typename acc_t>
inline void store_in_turn(
    acc_t* target,
    Lanes<acc_t> a,
    Lanes<acc_t> b,
    Lanes<acc_t> c,
    Lanes<acc_t> d) {
  constexpr int lanes = kLanes<acc_t>;
  const auto ab = zip<acc_t, 1, 0>(a, b);
  const auto cd = zip<acc_t, 1, 0>(c, d);
  const auto more_ab = zip<acc_t, 1, 1>(a, b);
  const auto more_cd = zip<acc_t, 1, 1>(c, d);
  store<acc_t>(target, zip<acc_t, 2, 0>(ab, cd));
  store<acc_t>(target + lanes, zip<acc_t, 2, 1>(ab, cd));
  store<acc_t>(target + 2 * lanes, zip<acc_t, 2, 0>(more_ab, more_cd));
  store<acc_t>(target + 3 * lanes, zip<acc_t, 2, 1>(more_ab, more_cd));
}

// Fill a register with each of four numbers.
template <typename acc_t>
inline void spread_four(const acc_t* source, Lanes<acc_t> (&spread)[4]) {
#if DCNV3_VECTOR_BYTES > 16
  if constexpr (sizeof(acc_t) == 4) {
    // One load and four shuffles; loads are what the kernels have most of.
    const __m128 four = _mm_loadu_ps(source);
#if DCNV3_VECTOR_BYTES == 64
    const __m512 all = _mm512_broadcast_f32x4(four);
    spread[0] = (Lanes<acc_t>)_mm512_permute_ps(all, 0x00);
    spread[1] = (Lanes<acc_t>)_mm512_permute_ps(all, 0x55);
    spread[2] = (Lanes<acc_t>)_mm512_permute_ps(all, 0xaa);
    spread[3] = (Lanes<acc_t>)_mm512_permute_ps(all, 0xff);
#else
    const __m256 all = _mm256_set_m128(four, four);
    spread[0] = (Lanes<acc_t>)_mm256_permute_ps(all, 0x00);
    spread[1] = (Lanes<acc_t>)_mm256_permute_ps(all, 0x55);
    spread[2] = (Lanes<acc_t>)_mm256_permute_ps(all, 0xaa);
    spread[3] = (Lanes<acc_t>)_mm256_permute_ps(all, 0xff);
#endif
    return;
  }
#endif
  for (int i = 0; i < 4; ++i) {
    spread[i] = Lanes<acc_t>{} + source[i];
  }
}

// floor(x) for -1 < x.
template <typename acc_t>
inline Lanes<acc_t> floor_of(Lanes<acc_t> x) {
#if DCNV3_VECTOR_BYTES > 16
  if constexpr (sizeof(acc_t) == 4) {
    constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
#if DCNV3_VECTOR_BYTES == 64
    return (Lanes<acc_t>)_mm512_roundscale_ps((__m512)x, kDown);
#else
    return (Lanes<acc_t>)_mm256_round_ps((__m256)x, kDown);
#endif
  }
#endif
  // Truncation, after a step down below 0.
  const auto floor = __builtin_convertvector(x, Integers<acc_t>) + (x < 0);
  return __builtin_convertvector(floor, Lanes<acc_t>);
}

// Sums of neighbouring lanes: first of a, then of b.
template <typename acc_t>
inline Lanes<acc_t> sum_pairs(Lanes<acc_t> a, Lanes<acc_t> b) {
  return every_second<acc_t, 0>(a, b) + every_second<acc_t, 1>(a, b);
}

// Of rows registers: sums of as many neighbouring lanes of each, the first
// row's first.
template <typename acc_t, int rows>
inline Lanes<acc_t> sum_rows(const acc_t* source) {
  if constexpr (rows == 1) {
    return load(source);
  } else {
    return sum_pairs<acc_t>(
        sum_rows<acc_t, rows / 2>(source),
        sum_rows<acc_t, rows / 2>(source + rows / 2 * kLanes<acc_t>));
  }
}

template <typename acc_t>
inline acc_t sum_lanes(Lanes<acc_t> vector) {
  for (int count = kLanes<acc_t>; count > 1; count /= 2) {
    vector = sum_pairs<acc_t>(vector, vector);
  }
  return vector[0];
}

// exp(x) for x up to 88, and NaN for NaN.
inline Lanes<double> exp_of(Lanes<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) {
    x[i] = __builtin_exp(x[i]);
  }
  return x;
}

// To 2 ulp, and zero where the result is below the smallest normal number.
// x = n ln 2 + r with |r| <= ln 2 / 2; the polynomial is that of the Cephes
// library.
inline Lanes<float> exp_of(Lanes<float> x) {
  constexpr float kSmallest = -87.33654f;  // log of the smallest normal number
  const Lanes<float> clamped = x < kSmallest ? Lanes<float>{} + kSmallest : x;
  constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer
  const Lanes<float> n = (clamped * 1.44269504f + kRound) - kRound;
  const Lanes<float> r = clamped - n * 0.693359375f - n * -2.12194440e-4f;
  Lanes<float> series = 1.9875691500e-4f * r + 1.3981999507e-3f;
  series = series * r + 8.3334519073e-3f;
  series = series * r + 4.1665795894e-2f;
  series = series * r + 1.6666665459e-1f;
  series = series * r + 5.0000001201e-1f;
  series = series * r * r + r + 1.0f;
  const auto exponent = __builtin_convertvector(n, Integers<float>) + 127;
  const auto result = series * (Lanes<float>)(exponent << 23);
  return x < kSmallest ? Lanes<float>{} : result;
}

// Heap memory of a thread, of numbers, from the start of a cache line on: a
// register that crosses lines costs two accesses. Where it is large, in large
// pages if the system has them: to clear small ones takes longer than to use
// them. Plain new, as the containers of the standard library are inline
// functions.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : bytes_(size * sizeof(T)),
        alignment_(bytes_ < 2 * kPage ? kLine : kPage),
        data_(static_cast<T*>(::operator new(bytes_, alignment()))) {
#if defined(MADV_HUGEPAGE)
    if (alignment_ == kPage) {
      madvise(data_, bytes_, MADV_HUGEPAGE);  // its failure costs time only
    }
#endif
  }
  ~Scratch() { ::operator delete(data_, alignment()); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() const { return data_; }
  void zero() { __builtin_memset(static_cast<void*>(data_), 0, bytes_); }

 private:
  static constexpr size_t kLine = 64;
  static constexpr size_t kPage = 2 << 20;

  std::align_val_t alignment() const {
    return static_cast<std::align_val_t>(alignment_);
  }

  size_t bytes_;
  size_t alignment_;
  T* data_;
};

// x between -most and most, and NaN for NaN.
template <typename acc_t>
inline Lanes<acc_t> clamped(Lanes<acc_t> x, acc_t most) {
  const Lanes<acc_t> high = fill<acc_t>(most);
  const Lanes<acc_t> low = -high;
#if DCNV3_VECTOR_BYTES == 64
  if constexpr (sizeof(acc_t) == 4) {
    // Of a NaN and a number these return the second.
    const __m512 at_least = _mm512_max_ps((__m512)low, (__m512)x);
    return (Lanes<acc_t>)_mm512_min_ps((__m512)high, at_least);
  }
#endif
  return x > high ? high : x < low ? low : x;
}

inline float square_root(float x) {
  return __builtin_sqrtf(x);
}
inline double square_root(double x) {
  return __builtin_sqrt(x);
}

// erf(x), to an absolute 2e-7: a quotient of polynomials in x^2, fitted to [-4,
// 4] (coefficients of the Eigen library); beyond, erf is 1 to float's
// precision.
inline Lanes<float> erf_of(Lanes<float> x) {
  x = clamped<float>(x, 4.0f);
  const Lanes<float> square = x * x;
  Lanes<float> p = -2.72614225801306e-10f * square + 2.77068142495902e-08f;
  p = p * square - 2.10102402082508e-06f;
  p = p * square - 5.69250639462346e-05f;
  p = p * square - 7.34990630326855e-04f;
  p = p * square - 2.95459980854025e-03f;
  p = p * square - 1.60960333262415e-02f;
  Lanes<float> q = -1.45660718464996e-05f * square - 2.13374055278905e-04f;
  q = q * square - 1.68282697438203e-03f;
  q = q * square - 7.37332916720468e-03f;
  q = q * square - 1.42647390514189e-02f;
#if DCNV3_VECTOR_BYTES == 64
  // A third of the time of a division: 14 bits of 1 / q, and a step of
  // Newton's.
  const auto guess = (Lanes<float>)_mm512_rcp14_ps((__m512)q);
  return x * p * (guess * (2.0f - q * guess));
#else
  return x * p / q;
#endif
}

inline Lanes<double> erf_of(Lanes<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) {
    x[i] = __builtin_erf(x[i]);
  }
  return x;
}

template <typename acc_t>
inline Lanes<acc_t> gelu_of(Lanes<acc_t> x) {
  const Lanes<acc_t> result =
      static_cast<acc_t>(0.5) * x *
      (1 + erf_of(x * static_cast<acc_t>(0.70710678118654752)));
  // An erf that is not quite -1 would count for a number of any size.
  return x < -9 ? Lanes<acc_t>{} : result;
}

}  // namespace DCNV3_CAPABILITY
}  // namespace dcnv3
