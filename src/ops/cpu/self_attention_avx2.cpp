#include "core/simd_avx2.h"

#include "core/simd_math.h"

#include "ops/cpu/simd_self_attention.h"

namespace nibble::cpu {

const SelfAttentionOps& self_attention_ops_avx2() { return kSelfAttentionOps; }

}  // namespace nibble::cpu
