// What the tests of ops share: strided, poisoned matrices, random data, and a stream over a chosen number of threads.
#pragma once

#include "core/cpu_device.h"
#include "core/thread_pool.h"
#include "ops/backend.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

namespace nibble::test {

/// A [rows, columns] f32 matrix whose rows are `columns + gap` apart; all of it NaN until it is filled.
class Matrix {
 public:
  Matrix(std::int64_t rows, std::int64_t columns, std::int64_t gap = 0)
      : rows_(rows),
        columns_(columns),
        stride_(columns + gap),
        data_(static_cast<std::size_t>(rows * stride_) + 1, std::numeric_limits<float>::quiet_NaN()) {}

  MatrixRef ref() { return {data_.data(), DType::f32, rows_, columns_, stride_}; }
  float& at(std::int64_t row, std::int64_t column) { return data_[static_cast<std::size_t>(row * stride_ + column)]; }
  float at(std::int64_t row, std::int64_t column) const {
    return data_[static_cast<std::size_t>(row * stride_ + column)];
  }
  std::int64_t rows() const { return rows_; }
  std::int64_t columns() const { return columns_; }

  void fill(std::mt19937& random, float sigma = 1) {
    std::normal_distribution<float> normal(0, sigma);
    for (std::int64_t r = 0; r < rows_; ++r) {
      for (std::int64_t c = 0; c < columns_; ++c) at(r, c) = normal(random);
    }
  }

  /// The matrix without its gaps, bit for bit.
  std::vector<std::uint32_t> bits() const {
    std::vector<std::uint32_t> out;
    for (std::int64_t r = 0; r < rows_; ++r) {
      for (std::int64_t c = 0; c < columns_; ++c) {
        const float value = at(r, c);
        std::uint32_t word;
        std::memcpy(&word, &value, sizeof word);
        out.push_back(word);
      }
    }
    return out;
  }

  /// No element between the rows has been written.
  void expect_gaps_untouched() const {
    for (std::int64_t r = 0; r < rows_; ++r) {
      for (std::int64_t c = columns_; c < stride_; ++c) EXPECT_TRUE(std::isnan(at(r, c))) << "gap after row " << r;
    }
  }

 private:
  std::int64_t rows_;
  std::int64_t columns_;
  std::int64_t stride_;
  std::vector<float> data_;
};

/// |got - expected(row, column)| <= absolute + relative * |expected|, everywhere; false for NaN.
inline void expect_close(const Matrix& got, const std::function<double(std::int64_t, std::int64_t)>& expected,
                         double absolute, double relative) {
  for (std::int64_t r = 0; r < got.rows(); ++r) {
    for (std::int64_t c = 0; c < got.columns(); ++c) {
      const double want = expected(r, c);
      const double error = std::abs(static_cast<double>(got.at(r, c)) - want);
      ASSERT_TRUE(error <= absolute + relative * std::abs(want))
          << "[" << r << ", " << c << "] is " << got.at(r, c) << ", expected " << want;
    }
  }
}

/// A back end and a stream on `threads` threads; the pool gets its size back at the end.
class Bench {
 public:
  explicit Bench(int threads) : before_(ThreadPool::instance().threads()) {
    ThreadPool::instance().set_threads(threads);
    backend = make_cpu_backend();
    stream = cpu_device().make_stream();
  }
  ~Bench() { ThreadPool::instance().set_threads(before_); }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  std::unique_ptr<Backend> backend;
  std::unique_ptr<Stream> stream;

 private:
  int before_;
};

inline constexpr int kThreadCounts[] = {1, 2, 3, 5};

/// A ragged batch: its arrays, and the RowMap that points at them.
struct Batch {
  struct Sequence {
    std::int32_t slot = 0;
    std::int32_t past = 0;  // tokens in the cache before this pass
    std::int32_t rows = 0;
  };
  std::vector<Sequence> sequences;
  std::vector<std::int32_t> tokens, positions, slots, row_begin;

  explicit Batch(std::vector<Sequence> list) : sequences(std::move(list)) {
    row_begin.push_back(0);
    for (const Sequence& s : sequences) {
      for (std::int32_t i = 0; i < s.rows; ++i) {
        tokens.push_back(0);
        positions.push_back(s.past + i);
        slots.push_back(s.slot);
      }
      row_begin.push_back(static_cast<std::int32_t>(positions.size()));
    }
  }
  std::int64_t rows() const { return static_cast<std::int64_t>(positions.size()); }
  RowMap map() const {
    return {rows(),          static_cast<std::int64_t>(sequences.size()), tokens.data(), positions.data(), slots.data(),
            row_begin.data()};
  }
};

}  // namespace nibble::test
