// Which kernels a call of self_attention becomes.
#include "core/error.h"
#include "ops/cuda/attention_parts.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/op_checks.h"
#include "ops/cuda/self_attention_parts.h"

#include <limits>

namespace nibble::cuda {

std::size_t self_attention_workspace(const SelfAttentionShape& shape) {
  return shape.materialise ? self_attend_whole_workspace(shape) : 0;
}

void self_attention(const SelfAttentionArgs& args, const CudaDevice& device, CudaStream& stream) {
  const std::int64_t rows = args.map.rows;
  if (rows == 0 || args.map.sequences == 0) return;
  const std::int64_t columns = args.q.columns;
  check_shape(args.q, rows, columns, "self_attention", "q");
  check_shape(args.k, rows, columns, "self_attention", "k");
  check_shape(args.v, rows, columns, "self_attention", "v");
  check_shape(args.y, rows, columns, "self_attention", "y");
  if (args.heads < 1 || columns % args.heads != 0 || columns / args.heads > kMaxHeadDim) {
    fail("self_attention on the GPU takes heads of up to {} elements; {} columns do not divide among {} heads so",
         kMaxHeadDim, columns, args.heads);
  }
  if (!(args.scale > 0)) fail("self_attention: a scale of {}; expected more than 0", args.scale);
  if (args.k.dtype != args.q.dtype || args.v.dtype != args.q.dtype || args.y.dtype != args.q.dtype) {
    fail("self_attention on the GPU takes q, k, v and y of one type, not {}, {}, {} and {}", name_of(args.q.dtype),
         name_of(args.k.dtype), name_of(args.v.dtype), name_of(args.y.dtype));
  }
  // Tiles times heads are counted in 32 bits.
  if ((rows + args.map.sequences) > std::numeric_limits<std::int32_t>::max() / args.heads)
    fail("self_attention: {} rows with {} heads are beyond what the GPU's kernels count", rows, args.heads);
  if (args.materialise) {
    if (args.length * args.map.sequences != rows) {
      fail(
          "self_attention with whole matrices of scores takes sequences of one length on the GPU; {} rows are no {} "
          "sequences of {}",
          rows, args.map.sequences, args.length);
    }
    self_attend_whole(args, stream);
  } else if (args.q.dtype == DType::f32) {
    self_attend_f32(args, device, stream);
  } else if (takes_wgmma(args, device)) {
    self_attend_wgmma(args, device, stream);
  } else {
    self_attend_tiles(args, device, stream);
  }
}

}  // namespace nibble::cuda
