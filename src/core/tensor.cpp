#include "core/tensor.h"

#include "core/checked.h"
#include "core/float_convert.h"

#include <cstdlib>
#include <cstring>

namespace nibble {

std::int64_t element_count(const Shape& shape) {
  std::int64_t count = 1;
  for (const std::int64_t dim : shape) {
    if (dim < 0) fail("a shape has the negative dimension {}", dim);
    count = checked_mul(count, dim, "the number of elements of a tensor");
  }
  return count;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i != 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

void Tensor::Free::operator()(std::byte* p) const { std::free(p); }

Tensor::Tensor(DType dtype, Shape shape) : dtype_(dtype), shape_(std::move(shape)) {
  size_ = checked_mul(static_cast<std::size_t>(element_count(shape_)), bytes_of(dtype), "the size of a tensor");
  constexpr std::size_t kAlign = 64;  // a cache line and a full AVX-512 register
  const std::size_t reserve = round_up(checked_add(size_, kAlign, "the size of a tensor"), kAlign);
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlign, reserve)));
  if (!data_) fail("no memory for a tensor of {} bytes", size_);
}

void rows_to_float(const TensorView& from, std::int64_t first, std::int64_t rows, std::span<float> out) {
  const std::int64_t columns = from.shape.empty() ? 1 : from.shape.back();
  const std::int64_t total = from.elements();
  const std::int64_t begin = checked_mul(first, columns, "a row range");
  const std::int64_t count = checked_mul(rows, columns, "a row range");
  if (first < 0 || rows < 0 || begin + count > total) {
    fail("rows {} to {} lie outside of a tensor of shape {}", first, first + rows, to_string(from.shape));
  }
  if (out.size() < static_cast<std::size_t>(count))
    fail("a buffer of {} floats is too small for {}", out.size(), count);
  const std::byte* source = from.bytes.data() + static_cast<std::size_t>(begin) * bytes_of(from.dtype);
  const std::size_t n = static_cast<std::size_t>(count);
  switch (from.dtype) {
    case DType::f32:
      std::memcpy(out.data(), source, n * sizeof(float));
      return;
    case DType::f64:
      for (std::size_t i = 0; i < n; ++i) {
        double value;
        std::memcpy(&value, source + i * sizeof value, sizeof value);
        out[i] = static_cast<float>(value);
      }
      return;
    case DType::f16:
    case DType::bf16:
      for (std::size_t i = 0; i < n; ++i) {
        std::uint16_t bits;
        std::memcpy(&bits, source + i * sizeof bits, sizeof bits);
        out[i] = from.dtype == DType::f16 ? half_to_float(bits) : bf16_to_float(bits);
      }
      return;
    default:
      fail("a tensor of type {} was read where floats are expected (f32, f16, bf16 or f64)", name_of(from.dtype));
  }
}

std::vector<float> to_float(const TensorView& from) {
  std::vector<float> out(static_cast<std::size_t>(from.elements()));
  const std::int64_t columns = from.shape.empty() ? 1 : from.shape.back();
  rows_to_float(from, 0, columns == 0 ? 0 : from.elements() / columns, out);
  return out;
}

}  // namespace nibble
