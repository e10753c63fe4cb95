// SPDX-License-Identifier: Apache-2.0
// Body of the kernel of linear layers on the CPU. Included, as vectors.h, after
// the instruction set is chosen.
//
// The floor is arithmetic: each weight is multiplied by each row of the input.
// Libraries are far from it where rows are few, as they are in the last levels
// of a single image: they wait for weights, or lay them out too slowly. Here
// the sums of a tile of the output stay in registers, the weights of its
// columns lie transposed in the second cache, and those of the next columns
// come in meanwhile.
#pragma once

#include "vectors.h"

namespace dcnv3 {
namespace DCNV3_CAPABILITY {

// A tile is as large as the registers allow: its sums, weights and one number
// of the input. (There are 32 registers with AVX-512, otherwise 16.)
constexpr int kTileRows = 6;
constexpr int kTileVectors = DCNV3_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kTileColumns = kTileVectors * kLanes<float>;

// Input features whose weights are laid out together, 64 KiB for a tile, and
// numbers of the input that are kept in a cache for all columns, 512 KiB.
constexpr int64_t kPanelFeatures = 256;
constexpr int64_t kCachedInputs = 128 * 1024;

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

inline int64_t divided_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Lay the weights of up to kTileColumns outputs out by input feature, with
// zeros beyond the last output.
inline void lay_out(
    const float* weight,
    int64_t stride,
    int64_t outputs,
    int64_t features,
    float* panel) {
  constexpr int lanes = kLanes<float>;
  for (int64_t first = 0; first < kTileColumns; first += lanes) {
    const auto row = [&](int64_t i) { return weight + (first + i) * stride; };
    int64_t feature = 0;
    for (; feature + lanes <= features; feature += lanes) {
      Lanes<float> square[lanes];
      for (int i = 0; i < lanes; ++i) {
        square[i] =
            first + i < outputs ? load(row(i) + feature) : Lanes<float>{};
      }
      transpose<float>(square);
      for (int i = 0; i < lanes; ++i) {
        store<float>(panel + (feature + i) * kTileColumns + first, square[i]);
      }
    }
    for (; feature < features; ++feature) {
      for (int i = 0; i < lanes; ++i) {
        panel[feature * kTileColumns + first + i] =
            first + i < outputs ? row(i)[feature] : 0;
      }
    }
  }
}

// Rows of numbers, a stride apart.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
};

// Set sums to start and the product of input and a panel of weights. Ask
// meanwhile for as many features of the rows ahead.
template <int rows, int vectors>
void multiply(
    Rows<const float> input,
    const float* panel,
    int64_t features,
    Rows<const float> start,
    Rows<float> sums,
    Rows<const float> ahead,
    int64_t ahead_rows) {
  constexpr int lanes = kLanes<float>;
  constexpr int64_t kLine = 16;  // numbers of a cache line
  Lanes<float> parts[rows][vectors];
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 4
    for (int i = 0; i < vectors; ++i) {
      parts[row][i] = load(start.data + row * start.stride + i * lanes);
    }
  }
  const float* x = input.data;
  const float* const end = x + features;
  // There is at least one feature; loops that know it keep the sums in place.
  do {
    for (int64_t row = 0; row < ahead_rows; ++row) {
      __builtin_prefetch(ahead.data + row * ahead.stride, 0, 2);
    }
    ahead.data += kLine;
    const float* const end_of_line = end - x < kLine ? end : x + kLine;
    do {
      Lanes<float> weights[vectors];
#pragma GCC unroll 4
      for (int i = 0; i < vectors; ++i) {
        weights[i] = load(panel + i * lanes);
      }
      panel += kTileColumns;
#pragma GCC unroll 8
      for (int row = 0; row < rows; ++row) {
        const Lanes<float> factor = fill<float>(x[row * input.stride]);
#pragma GCC unroll 4
        for (int i = 0; i < vectors; ++i) {
          parts[row][i] += factor * weights[i];
        }
      }
    } while (++x < end_of_line);
  } while (x < end);
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 4
    for (int i = 0; i < vectors; ++i) {
      store<float>(sums.data + row * sums.stride + i * lanes, parts[row][i]);
    }
  }
}

// The kernel for a number of rows, 1 to kTileRows, and of vectors.
template <int rows = kTileRows, int vectors = kTileVectors>
inline decltype(&multiply<1, 1>) multiply_for(
    int64_t row_count,
    int64_t width) {
  if constexpr (vectors > 1) {
    if (width < vectors) {
      return multiply_for<rows, vectors - 1>(row_count, width);
    }
  }
  if constexpr (rows > 1) {
    if (row_count < rows) {
      return multiply_for<rows - 1, vectors>(row_count, width);
    }
  }
  return &multiply<rows, vectors>;
}

// Part of the work of a thread: for the columns of one tile, blocks of rows.
struct Part {
  int64_t column;
  int64_t columns;
  int64_t first_block;
  int64_t end_block;
};

// A block is kTileRows rows. An item is a vector of columns for a block. Items
// run over chunks of blocks, whose inputs stay in a cache; in a chunk over
// tiles of columns; in those over blocks.
struct LinearPlan {
  explicit LinearPlan(const LinearSizes& sizes)
      : s(sizes),
        blocks(divided_up(s.rows, kTileRows)),
        vectors(divided_up(s.out_features, kLanes<float>)),
        features(smaller(s.in_features, kPanelFeatures)),
        chunk(1 + kCachedInputs / (features * kTileRows)) {}

  int64_t items() const { return blocks * vectors; }

  // Call work(part) for the items from begin to end. A block whose first item
  // is among them is done as a whole.
  template <typename Work>
  void for_each_part(int64_t begin, int64_t end, const Work& work) const {
    for (int64_t first = 0; first < blocks; first += chunk) {
      const int64_t count = smaller(chunk, blocks - first);
      for (int64_t vector = 0; vector < vectors; vector += kTileVectors) {
        const int64_t width = smaller(kTileVectors, vectors - vector);
        const int64_t start = first * vectors + vector * count;
        const auto block_from = [&](int64_t item) {
          const int64_t past = item > start ? item - start : 0;
          return first + smaller(divided_up(past, width), count);
        };
        const int64_t column = vector * kLanes<float>;
        const Part part{
            column,
            smaller(kTileColumns, s.out_features - column),
            block_from(begin),
            block_from(end)};
        if (part.first_block < part.end_block) {
          work(part);
        }
      }
    }
  }

  const LinearSizes& s;
  int64_t blocks;
  int64_t vectors;
  int64_t features;
  int64_t chunk;
};

int64_t linear_items(const LinearSizes& s) {
  return LinearPlan(s).items();
}

// What comes after the last features: GELU and ending. Sums are whole registers
// of a tile; the ending starts at its first column and row.
inline void finish(
    const LinearSizes& s,
    Rows<float> sums,
    Rows<float> output,
    Ending ending,
    int64_t rows,
    int64_t columns) {
  const bool changes = s.gelu || ending.factors || ending.added;
  for (int64_t row = 0; row < rows; ++row) {
    const float* const sum = sums.data + row * sums.stride;
    float* const target = output.data + row * output.stride;
    if (!changes && target != sum) {
      __builtin_memcpy(target, sum, columns * sizeof(float));
    }
    for (int64_t i = 0; changes && i < columns; i += kLanes<float>) {
      const auto x = load(sum + i);
      const auto y =
          ended(s.gelu ? gelu_of<float>(x) : x, ending, i, columns - i);
      store_up_to<float>(target + i, y, columns - i);
    }
    if (ending.added) {
      ending.added += output.stride;
    }
  }
}

// Compute a part for a block of features after the other.
inline void run_part(
    const LinearSizes& s,
    const LinearPointers& p,
    const Part& part,
    int64_t most_features,
    float* panel) {
  alignas(64) float tile[kTileRows * kTileColumns];
  alignas(64) float bias[kTileColumns] = {};
  __builtin_memcpy(bias, p.bias + part.column, part.columns * sizeof(float));
  // Sums that fill registers are made in the output.
  const int64_t width = divided_up(part.columns, kLanes<float>);
  const bool is_direct = part.columns == width * kLanes<float>;
  const int64_t blocks = part.end_block - part.first_block;
  for (int64_t feature = 0; feature < s.in_features; feature += most_features) {
    const int64_t features = smaller(most_features, s.in_features - feature);
    const bool is_last = feature + features == s.in_features;
    const float* const weight =
        p.weight + part.column * s.in_features + feature;
    lay_out(weight, s.in_features, part.columns, features, panel);
    // What is laid out next: weights of more features, of the next columns or,
    // after the last ones, of the next layer.
    const int64_t others = s.out_features - part.column - part.columns;
    Rows<const float> ahead{weight + features, s.in_features};
    int64_t ahead_rows = part.columns;
    if (is_last && others > 0) {
      ahead.data = weight + part.columns * s.in_features - feature;
      ahead_rows = smaller(kTileColumns, others);
    } else if (is_last && p.next.data) {
      ahead = {p.next.data, p.next.in_features};
      ahead_rows = smaller(kTileColumns, p.next.out_features);
    } else if (is_last) {
      ahead_rows = 0;
    }
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t row = (part.first_block + i) * kTileRows;
      const int64_t rows = smaller(kTileRows, s.rows - row);
      const int64_t at = row * s.out_features + part.column;
      const Rows<float> output{p.output + at, s.out_features};
      const Rows<float> sums =
          is_direct ? output : Rows<float>{tile, kTileColumns};
      Rows<const float> start{bias, 0};
      if (feature > 0) {
        start = {sums.data, sums.stride};
        if (!is_direct) {
          for (int64_t j = 0; j < rows; ++j) {
            __builtin_memcpy(
                sums.data + j * sums.stride,
                output.data + j * output.stride,
                part.columns * sizeof(float));
          }
        }
      }
      const int64_t ahead_row = ahead_rows * i / blocks;
      multiply_for(rows, width)(
          {p.input + row * s.in_features + feature, s.in_features},
          panel,
          features,
          start,
          sums,
          {ahead.data + ahead_row * ahead.stride, ahead.stride},
          ahead_rows * (i + 1) / blocks - ahead_row);
      if (is_last) {
        const auto& [factors, added] = p.ending;
        const Ending ending{
            factors ? factors + part.column : nullptr,
            added ? added + at : nullptr};
        finish(s, sums, output, ending, rows, part.columns);
      } else if (!is_direct) {
        finish({}, sums, output, {}, rows, part.columns);
      }
    }
  }
}

void linear(
    const LinearSizes& s,
    const LinearPointers& p,
    int64_t begin,
    int64_t end) {
  const LinearPlan plan(s);
  Scratch<float> panel(plan.features * kTileColumns);
  plan.for_each_part(begin, end, [&](const Part& part) {
    run_part(s, p, part, plan.features, panel.data());
  });
}

}  // namespace DCNV3_CAPABILITY
}  // namespace dcnv3
