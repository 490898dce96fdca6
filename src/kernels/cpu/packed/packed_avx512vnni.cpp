// Byte dot products by vpdpbusd: 64 products and sums an instruction.
#include "kernels/cpu/packed/pairs512.h"

namespace nibble::packed {
namespace {

struct VnniDot {
  // A dot product takes 5 cycles and two start in each.
  template <int kByteRows>
  static constexpr int kChains = kByteRows <= 2   ? 4
                                 : kByteRows <= 8 ? 2
                                                  : 1;

  // As text, since g++ 12 gives the intrinsic a register of its own for the result and copies the sums there and back:
  // twice as many instructions. The bytes are broadcast by the instruction itself.
  template <int kBits>
  static __attribute__((always_inline)) void add(__m512i& sum, __m512i codes, const std::int8_t* x) {
    struct __attribute__((packed, may_alias)) Four {
      std::int32_t bytes;
    };
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*reinterpret_cast<const Four*>(x)));
  }
};

}  // namespace

void multiply_avx512vnni(const Call& call, const Rectangle& rectangle) { multiply_with<VnniDot>(call, rectangle); }

}  // namespace nibble::packed
