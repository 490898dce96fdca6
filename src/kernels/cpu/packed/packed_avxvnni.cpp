// Byte dot products by the 256-bit vpdpbusd of processors without AVX-512.
#include "kernels/cpu/packed/pairs256.h"

namespace nibble::packed {
namespace {

struct VnniDot {
  // With few rows sums of even and odd planes are kept apart: a dot product takes 5 cycles, and two start in each.
  template <int kBits, int kChains>
  struct Sum {
    __m256i sum[kChains];
    __attribute__((always_inline)) Sum() {
      for (__m256i& one : sum) one = _mm256_setzero_si256();
    }
    __attribute__((always_inline)) void add(__m256i codes, __m256i x, int plane) {
      // As text, since g++ 12 copies the sums of the intrinsic to another register and back.
      __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum[plane % kChains]) : "x"(codes), "x"(x));
    }
    __attribute__((always_inline)) void widen() {}
    __attribute__((always_inline)) __m256i value() const {
      return kChains == 2 ? _mm256_add_epi32(sum[0], sum[kChains - 1]) : sum[0];
    }
  };

  template <int kBits>
  static constexpr int kRegisters = 1;
  template <int kBits>
  static constexpr int kChunks = kLine;  // sums are of 32 bits from the start
};

}  // namespace

void multiply_avxvnni(const Call& call, const Rectangle& rectangle) { multiply_with<VnniDot>(call, rectangle); }

}  // namespace nibble::packed
