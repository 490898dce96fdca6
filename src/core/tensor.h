// A tensor as files and kernels see it: a type, a shape, and bytes that somebody else owns (TensorView) or that it owns
// (Tensor). Row-major, contiguous. The bytes of a view may lie at any address: files align nothing.
#pragma once

#include "core/dtype.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace nibble {

/// Dimensions, outermost first; an empty shape is a scalar. Zero-sized dimensions are legal.
using Shape = std::vector<std::int64_t>;

/// The number of elements, or Error on overflow or a negative dimension.
std::int64_t element_count(const Shape& shape);

/// "[2, 3]"
std::string to_string(const Shape& shape);

struct TensorView {
  DType dtype = DType::f32;
  Shape shape;
  std::span<const std::byte> bytes;

  bool empty() const { return bytes.data() == nullptr; }
  std::int64_t elements() const { return element_count(shape); }
};

/// An owning tensor, 64-byte aligned.
class Tensor {
 public:
  Tensor() = default;
  /// Uninitialised memory of the given type and shape; throws Error when it is too large to have.
  Tensor(DType dtype, Shape shape);

  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  std::span<std::byte> bytes() { return {data_.get(), size_}; }
  std::span<const std::byte> bytes() const { return {data_.get(), size_}; }
  template <typename T>
  std::span<T> as() {
    return {reinterpret_cast<T*>(data_.get()), size_ / sizeof(T)};
  }
  template <typename T>
  std::span<const T> as() const {
    return {reinterpret_cast<const T*>(data_.get()), size_ / sizeof(T)};
  }
  TensorView view() const { return {dtype_, shape_, bytes()}; }

 private:
  struct Free {
    void operator()(std::byte* p) const;
  };
  DType dtype_ = DType::f32;
  Shape shape_;
  std::size_t size_ = 0;
  std::unique_ptr<std::byte[], Free> data_;
};

/// Copies rows [first, first + rows) of a 2-D float tensor (f32, f16, bf16, f64) to float; `out` holds rows * columns.
/// A 1-D tensor counts as one row.
void rows_to_float(const TensorView& from, std::int64_t first, std::int64_t rows, std::span<float> out);

/// The whole tensor as float.
std::vector<float> to_float(const TensorView& from);

}  // namespace nibble
