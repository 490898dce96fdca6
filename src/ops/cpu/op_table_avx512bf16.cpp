#include "ops/cpu/simd_avx512.h"

#include "ops/cpu/simd_ops.h"

#include "ops/cpu/simd_attention.h"

namespace nibble::cpu {
namespace {

// Words of two bf16 multiplied and summed in float by one instruction; q and the probabilities are rounded to bf16.
struct DotPairs {
  static constexpr std::int64_t kElementsAWord = 2;
  static constexpr std::int64_t kWordBytes = 4;
  static constexpr std::int64_t kFloatsAWord = 1;
  static Reg load(const std::byte* p) { return Vec::load(reinterpret_cast<const float*>(p)); }
  static Reg load_first(const std::byte* p) { return Vec::first_of_pairs(load(p)); }
  static Reg multiply(const float* a, Reg b, Reg sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(Vec::set1(*a)), reinterpret_cast<__m512bh>(b));
  }
  static Reg exp(Reg x) { return exp2_coarse(x); }
  static void store(std::uint16_t* p, Reg x, __mmask16 lanes) {
    _mm256_mask_storeu_epi16(p, lanes, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
  }
  static void store_probabilities(float* row, std::int64_t key, Reg p) {
    store(reinterpret_cast<std::uint16_t*>(row) + key, p, 0xffff);
  }
  static void prepare(const float* q, std::int64_t n, Reg factor, float* out) {
    for_registers(n, [&](std::int64_t d, std::int64_t lanes) {
      const __mmask16 mask = lanes == Vec::kLanes ? __mmask16{0xffff} : Vec::first(lanes);
      store(reinterpret_cast<std::uint16_t*>(out) + d, Vec::mul(load_some(q + d, lanes), factor), mask);
    });
  }
};

}  // namespace

const OpTable& avx512bf16_op_table() {
  static constexpr OpTable table = {
      .embed = embed,
      .rms_norm = rms_norm,
      .layer_norm = layer_norm,
      .rotate = rotate,
      .gated = gated,
      .add = add,
      .store_k = store_k,
      .store_v = store_v,
      .attention_f32 = {prepare_q<Floats>, attend<Floats>, attend<Floats>},
      .attention_f16 = {prepare_q<Halves>, attend<Halves>, attend<Halves>},
      .attention_bf16 = {prepare_q<DotPairs>, attend<DotPairs>, attend<DotPairs>},
      .merge = merge,
      .finish = finish,
      .argmax = argmax,
      .exp_weights = exp_weights,
  };
  return table;
}

}  // namespace nibble::cpu
