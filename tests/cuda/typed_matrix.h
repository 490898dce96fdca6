// Matrices of f32, f16 and bf16 in device memory for tests: poisoned, with gaps between rows, rounded on the host.
#pragma once

#include "core/float_convert.h"
#include "cuda/gpu.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace nibble::test {

inline constexpr DType kActivationTypes[] = {DType::f32, DType::f16, DType::bf16};

/// `value` as an element of `dtype` holds it.
inline float rounded(DType dtype, float value) {
  if (dtype == DType::f16) return half_to_float(float_to_half(value));
  if (dtype == DType::bf16) return bf16_to_float(float_to_bf16(value));
  return value;
}

/// The largest relative error of rounding to `dtype`.
inline double rounding_of(DType dtype) {
  return dtype == DType::f16 ? 0x1p-11 : dtype == DType::bf16 ? 0x1p-8 : 0x1p-24;
}

/// A [rows, columns] matrix in device memory, and its copy on the host: set() and at() work on the copy, upload() and
/// download() carry it over. Rows are `columns + gap` elements apart and begin `lead` elements behind the start of the
/// allocation, which is aligned to 256 bytes. Every element is NaN (all bits set) until it is set.
class TypedMatrix {
 public:
  TypedMatrix(Stream& stream, DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t gap = 0,
              std::int64_t lead = 0)
      : stream_(&stream),
        dtype_(dtype),
        rows_(rows),
        columns_(columns),
        stride_(columns + gap),
        lead_(lead),
        size_(bytes_of(dtype)),
        host_(static_cast<std::size_t>(lead + rows * stride_ + kTail) * size_, kPoison),
        device_(gpu().device().allocate(host_.size(), "a matrix of a test")) {
    upload();
  }

  MatrixRef ref() const {
    return {device_->data() + static_cast<std::size_t>(lead_) * size_, dtype_, rows_, columns_, stride_};
  }
  DType dtype() const { return dtype_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t columns() const { return columns_; }

  void set(std::int64_t row, std::int64_t column, float value) {
    std::byte* to = host_.data() + offset(row, column);
    if (dtype_ == DType::f32) {
      std::memcpy(to, &value, sizeof value);
    } else {
      const std::uint16_t bits = dtype_ == DType::f16 ? float_to_half(value) : float_to_bf16(value);
      std::memcpy(to, &bits, sizeof bits);
    }
  }

  float at(std::int64_t row, std::int64_t column) const {
    const std::byte* from = host_.data() + offset(row, column);
    if (dtype_ == DType::f32) {
      float value;
      std::memcpy(&value, from, sizeof value);
      return value;
    }
    std::uint16_t bits;
    std::memcpy(&bits, from, sizeof bits);
    return dtype_ == DType::f16 ? half_to_float(bits) : bf16_to_float(bits);
  }

  /// Sets every element to a number of mean 0 and deviation `sigma`, and uploads.
  void fill(std::mt19937& random, float sigma = 1) {
    // The sum of four uniform numbers: near enough to normal, and an order of magnitude faster to draw.
    const float step = sigma * 1.7320508f / 65536;  // sqrt(3): four of variance (65536^2) / 12 each have it together
    for (std::int64_t r = 0; r < rows_; ++r) {
      for (std::int64_t c = 0; c < columns_; ++c) {
        const auto a = static_cast<std::uint32_t>(random());
        const auto b = static_cast<std::uint32_t>(random());
        const auto sum = static_cast<std::int32_t>((a & 0xffff) + (a >> 16) + (b & 0xffff) + (b >> 16));
        set(r, c, static_cast<float>(sum - 2 * 65535) * step);
      }
    }
    upload();
  }

  void upload() {
    stream_->copy_to_device(device_->data(), host_.data(), host_.size());
    stream_->synchronize();
  }
  void download() {
    stream_->copy_to_host(host_.data(), device_->data(), host_.size());
    stream_->synchronize();
  }

  /// The elements without what lies around them, row after row, from the copy on the host.
  std::vector<float> values() const {
    std::vector<float> out;
    out.reserve(static_cast<std::size_t>(rows_ * columns_));
    for (std::int64_t r = 0; r < rows_; ++r) {
      for (std::int64_t c = 0; c < columns_; ++c) out.push_back(at(r, c));
    }
    return out;
  }

  /// Nothing before, between and behind the rows has been written; of the copy on the host, after a download().
  void expect_surroundings_untouched() const {
    const std::size_t first = static_cast<std::size_t>(lead_) * size_;
    const std::size_t row_bytes = static_cast<std::size_t>(columns_) * size_;
    const std::size_t stride_bytes = static_cast<std::size_t>(stride_) * size_;
    std::size_t begin = 0;
    for (std::int64_t r = 0; r <= rows_; ++r) {
      const std::size_t end = r < rows_ ? first + static_cast<std::size_t>(r) * stride_bytes : host_.size();
      for (std::size_t i = begin; i < end; ++i) {
        ASSERT_EQ(host_[i], kPoison) << "byte " << i - begin << " behind row " << r - 1 << " of " << rows_
                                     << " rows of " << columns_ << " elements was written";
      }
      begin = end + row_bytes;
    }
  }

 private:
  static constexpr std::byte kPoison{0xff};
  // Elements behind the last row: as many as a vector access could overrun.
  static constexpr std::int64_t kTail = 16;

  std::size_t offset(std::int64_t row, std::int64_t column) const {
    return static_cast<std::size_t>(lead_ + row * stride_ + column) * size_;
  }

  Stream* stream_;
  DType dtype_;
  std::int64_t rows_, columns_, stride_, lead_;
  std::size_t size_;
  std::vector<std::byte> host_;
  std::unique_ptr<Buffer> device_;
};

/// |got - expected(row, column)| <= absolute + relative * |expected|, everywhere; false for NaN. Looks at the copy on
/// the host.
template <typename Expected>
void expect_close(const TypedMatrix& got, const Expected& expected, double absolute, double relative) {
  for (std::int64_t r = 0; r < got.rows(); ++r) {
    for (std::int64_t c = 0; c < got.columns(); ++c) {
      const double want = expected(r, c);
      const double error = std::abs(static_cast<double>(got.at(r, c)) - want);
      ASSERT_TRUE(error <= absolute + relative * std::abs(want))
          << "[" << r << ", " << c << "] of [" << got.rows() << ", " << got.columns() << "] " << name_of(got.dtype())
          << " is " << got.at(r, c) << ", expected " << want;
    }
  }
}

}  // namespace nibble::test
