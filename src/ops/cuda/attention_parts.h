// The kernels that attention() is put together from.
#pragma once

#include "core/cuda/cuda_device.h"
#include "core/error.h"
#include "ops/backend.h"

#include <numbers>

namespace nibble::cuda {

/// Error unless x has a type that activations have on the GPU.
inline void check_activations(const MatrixRef& x, const char* what) {
  if (x.dtype == DType::f32 || x.dtype == DType::f16 || x.dtype == DType::bf16) return;
  fail("{} of type {} is not supported on the GPU; use f32, f16 or bf16", what, name_of(x.dtype));
}

/// The largest head that the kernels' registers and shared memory are made for.
inline constexpr std::int64_t kMaxHeadDim = 256;

/// Rotates k (and q in place, where given) and stores k and v for all rows.
struct StoreRows {
  RowMap map;
  MatrixRef q;  // data null: no q
  std::int64_t heads = 0;
  AttentionStore store;
  KvView cache;
};
void store_rows(const StoreRows& args, CudaStream& stream);

/// Each row by itself, over all the cache's types and head sizes, in float arithmetic; `store` is done on the way,
/// which needs each row to be of another sequence. Made for decode steps.
void attend_rows(const AttentionArgs& args, const CudaDevice& device, CudaStream& stream);

/// Tiles of up to 128 rows of a sequence, on tensor cores; q of 16 bits, a cache of 16 or 8. The rows' keys are stored.
void attend_tiles(const AttentionArgs& args, CudaStream& stream);

/// Scores in base 2: score = after * f(dot * before), f the identity, or tanh where there is a cap.
struct ScoreFactors {
  float before = 1;
  float after = 1;
  bool capped = false;
};
inline ScoreFactors score_factors(const AttentionArgs& args) {
  constexpr float kLog2e = std::numbers::log2e_v<float>;
  if (args.softcap > 0) return {args.scale / args.softcap, args.softcap * kLog2e, true};
  return {1, args.scale * kLog2e, false};
}

}  // namespace nibble::cuda
