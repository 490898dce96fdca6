// Byte dot products by vpdpbusd: 64 products and sums an instruction.
#include "kernels/cpu/packed/pairs512.h"

namespace nibble::packed {
namespace {

struct VnniDot {
  template <int kBits>
  static __attribute__((always_inline)) __m512i add(__m512i sum, __m512i codes, __m512i x) {
    return _mm512_dpbusd_epi32(sum, codes, x);
  }
};

}  // namespace

void multiply_avx512vnni(const Call& call, const Rectangle& rectangle) { multiply_with<VnniDot>(call, rectangle); }

}  // namespace nibble::packed
