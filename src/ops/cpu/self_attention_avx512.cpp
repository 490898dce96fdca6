#include "core/simd_avx512.h"

#include "core/simd_math.h"

#include "ops/cpu/simd_self_attention.h"

namespace nibble::cpu {

const SelfAttentionOps& self_attention_ops_avx512() { return kSelfAttentionOps; }

}  // namespace nibble::cpu
