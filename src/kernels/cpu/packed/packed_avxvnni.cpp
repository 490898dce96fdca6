// Byte dot products by the 256-bit vpdpbusd of processors without AVX-512.
#include "kernels/cpu/packed/pairs256.h"

namespace nibble::packed {
namespace {

struct VnniDot {
  template <int kBits>
  struct Sum {
    __m256i sum = _mm256_setzero_si256();
    __attribute__((always_inline)) void add(__m256i codes, __m256i x) { sum = _mm256_dpbusd_avx_epi32(sum, codes, x); }
    __attribute__((always_inline)) void widen() {}
    __attribute__((always_inline)) __m256i value() const { return sum; }
  };

  template <int kBits>
  static constexpr int kChunks = kLine;  // sums are of 32 bits from the start
};

}  // namespace

void multiply_avxvnni(const Call& call, const Rectangle& rectangle) { multiply_with<VnniDot>(call, rectangle); }

}  // namespace nibble::packed
