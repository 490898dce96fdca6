// A bf16 cache on processors without bf16 products: each word is split into two registers of floats, which are exact,
// and multiplied in float by q and probabilities that keep their precision. For simd_attention.h, included before.
#pragma once

namespace nibble::cpu {
namespace {

struct SplitPairs : Floats {
  static constexpr std::int64_t kElementsAWord = 2;
  static constexpr std::int64_t kFloatsAWord = 2;
  static Reg load(const std::byte* p) { return Vec::load(reinterpret_cast<const float*>(p)); }
  static Reg load_first(const std::byte* p) { return Vec::first_of_pairs(load(p)); }
  static Reg multiply(const float* a, Reg b, Reg sum) {
    return Vec::fma(Vec::set1(a[1]), Vec::odd_bf16(b), Vec::fma(Vec::set1(a[0]), Vec::even_bf16(b), sum));
  }
};

}  // namespace
}  // namespace nibble::cpu
