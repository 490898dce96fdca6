#include "ops/cpu/op_table.h"

#include "core/cpu.h"

namespace nibble::cpu {

const OpTable& active_op_table() {
  return pick<const OpTable&()>({{Isa::scalar, scalar_op_table},
                                 {Isa::avx2, avx2_op_table},
                                 {Isa::avx512, avx512_op_table},
                                 {Isa::avx512bf16, avx512bf16_op_table}})();
}

}  // namespace nibble::cpu
