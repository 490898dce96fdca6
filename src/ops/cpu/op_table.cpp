#include "ops/cpu/op_table.h"

#include "core/cpu.h"
#include "ops/cpu/attention_amx.h"

namespace nibble::cpu {
namespace {

// AMX multiplies matrices: it serves attention over many rows of a bf16 cache, and AVX-512 the rest.
const OpTable& amx_op_table() {
  static const OpTable table = [] {
    OpTable t = avx512_op_table();
    t.attention_bf16.attend_tile = [](const AttendArgs& args) {
      if (amx_takes(args)) {
        attend_amx(args);
      } else {
        avx512_op_table().attention_bf16.attend(args);
      }
    };
    return t;
  }();
  return table;
}

}  // namespace

const OpTable& active_op_table() {
  return pick<const OpTable&()>({{Isa::scalar, scalar_op_table},
                                 {Isa::avx2, avx2_op_table},
                                 {Isa::avx512, avx512_op_table},
                                 {Isa::amx, amx_op_table}})();
}

}  // namespace nibble::cpu
