#include "core/simd_avx512.h"

#include "core/simd_math.h"

#include "kernels/cpu/simd_activations.h"

#include "ops/cpu/simd_ops.h"

#include "ops/cpu/simd_attention.h"

#include "ops/cpu/simd_bf16_pairs.h"

namespace nibble::cpu {

const OpTable& avx512_op_table() {
  static constexpr OpTable kTable = {
      .embed = embed,
      .rms_norm = rms_norm,
      .layer_norm = layer_norm,
      .rotate = rotate,
      .activate = activate,
      .gated = gated,
      .add = add,
      .store_k = store_k,
      .store_v = store_v,
      .attention_f32 = {prepare_q<Floats>, attend<Floats>, attend<Floats>},
      .attention_f16 = {prepare_q<Halves>, attend<Halves>, attend<Halves>},
      .attention_bf16 = {prepare_q<SplitPairs>, attend<SplitPairs>, attend<SplitPairs>},
      .merge = merge,
      .finish = finish,
      .argmax = argmax,
      .exp_weights = exp_weights,
  };
  return kTable;
}

}  // namespace nibble::cpu
