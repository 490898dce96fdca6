// oneDNN's matrix product on the panels of `dense`: its layouts BA16a32b (f32) and BA16a32b2a (bf16) are panels that
// follow each other, so that both multiply by the same memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace nibble {

/// y = x W^T + bias, or y += x W^T + bias, for a number of rows that is fixed when it is made. Nothing of it may be
/// used by two threads at a time, nor inside a parallel region: the library uses the pool's threads itself.
class LibraryProduct {
 public:
  struct Shape {
    bool bf16 = false;  // of inputs and weights; sums and outputs are f32
    std::int64_t rows = 0;
    std::int64_t inputs = 0;
    std::int64_t outputs = 0;
    std::int64_t x_stride = 0;  // of inputs, in elements
    std::int64_t y_stride = 0;
    bool adds = false;
  };

  /// `panels` and `bias` (null for none) must outlive it. Null where oneDNN has nothing of its own for panels on this
  /// processor: that takes AVX-512.
  static std::unique_ptr<LibraryProduct> make(const Shape& shape, const std::byte* panels, const float* bias);
  ~LibraryProduct();

  void run(const std::byte* x, float* y);

 private:
  struct Impl;
  explicit LibraryProduct(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
