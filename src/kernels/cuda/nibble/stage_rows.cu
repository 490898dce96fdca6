// Inputs of a product of few rows that are gathered (act-order), or not aligned to 16 bytes, or no whole number of
// blocks: staged in global memory once, where the product's thread blocks would each do it one by one.
#include "core/checked.h"
#include "kernels/cuda/nibble/stage_chunk.cuh"

namespace nibble::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// A part is what the threads take in one go.
constexpr int kPartBlocks = kThreads / kBlockChunks;

struct StageArgs {
  int bits = 4;
  int sets = 1;
  int blocks = 0;
  int inputs = 0;
  int rows = 0;
  const void* x = nullptr;
  DType x_dtype = DType::f16;
  std::int64_t x_stride = 0;
  const std::int32_t* order = nullptr;  // InputOrder::inputs, or null
  const float* norm_weight = nullptr;   // null: no norm
  StagedRows to;
};

// A thread block a token and part.
__global__ __launch_bounds__(kThreads) void stage_kernel(const __grid_constant__ StageArgs a) {
  __shared__ float partial[kWarps];
  const int token = static_cast<int>(blockIdx.x);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int chunk = static_cast<int>(threadIdx.x) % kBlockChunks;
  const int block = static_cast<int>(blockIdx.y) * kPartBlocks + static_cast<int>(threadIdx.x) / kBlockChunks;
  const bool active = block < a.blocks;
  // What no kernel before this one writes comes first.
  int input[kChunkInputs];
  float weight[kChunkInputs];
#pragma unroll
  for (int i = 0; i < kChunkInputs; ++i) {
    const int place = block * kBlockInputs + chunk * kChunkInputs + i;
    input[i] = !active ? -1 : a.order != nullptr ? a.order[place] : place < a.inputs ? place : -1;
  }
#pragma unroll
  for (int i = 0; i < kChunkInputs; ++i) weight[i] = a.norm_weight != nullptr ? a.norm_weight[max(input[i], 0)] : 1.0f;
  pdl_wait();
  pdl_launch();
  float v[kChunkInputs];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kChunkInputs; ++i) {
    const std::int64_t at = token * a.x_stride + max(input[i], 0);
    v[i] = a.x_dtype == DType::f32 ? static_cast<const float*>(a.x)[at]
                                   : widen_half(static_cast<const std::uint16_t*>(a.x)[at], a.x_dtype == DType::f16);
  }
#pragma unroll
  for (int i = 0; i < kChunkInputs; ++i) {
    if (input[i] < 0) v[i] = 0;
    squares += v[i] * v[i];
    v[i] *= weight[i];
  }
  stage_chunk(v, chunk, a.bits, a.sets, a.rows, token, active,
              a.to.inputs + static_cast<std::int64_t>(block) * 4 * staged_pair_bytes(a.rows),
              a.to.sums + static_cast<std::int64_t>(block) * a.sets * staged_tokens(a.rows),
              a.to.factors + static_cast<std::int64_t>(block) * staged_tokens(a.rows));
  if (a.norm_weight == nullptr) return;
  squares = warp_sum(squares);
  if (lane == 0) partial[warp] = squares;
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += partial[w];
    a.to.squares[static_cast<int>(blockIdx.y) * a.rows + token] = sum;
  }
}

}  // namespace

int stage_parts(const PackedLayout& layout) {
  return static_cast<int>(ceil_div(layout.blocks, std::int64_t{kPartBlocks}));
}

StagedRows staged_rows(const PackedLayout& layout, std::int64_t rows, std::byte* workspace) {
  // Each part begins where the copy engine and vectors can read it.
  const auto align = [](std::int64_t bytes) { return round_up(bytes, std::int64_t{256}); };
  const std::int64_t tokens = staged_tokens(static_cast<int>(rows));
  StagedRows out;
  out.inputs = workspace;
  out.sums = reinterpret_cast<float*>(workspace + align(layout.blocks * 4 * staged_pair_bytes(static_cast<int>(rows))));
  out.factors = out.sums + align(layout.blocks * layout.sets * tokens * 4) / 4;
  out.squares = out.factors + align(layout.blocks * tokens * 4) / 4;
  return out;
}

std::size_t staged_rows_bytes(const PackedLayout& layout, std::int64_t rows) {
  const StagedRows at = staged_rows(layout, rows, nullptr);
  return reinterpret_cast<std::uintptr_t>(at.squares + stage_parts(layout) * rows);
}

void stage_small_rows(const PackedSite& packed, const LinearArgs& args, const StagedRows& to, CudaStream& stream) {
  const PackedLayout& layout = packed.layout;
  StageArgs a;
  a.bits = layout.bits;
  a.sets = layout.sets;
  a.blocks = static_cast<int>(layout.blocks);
  a.inputs = static_cast<int>(layout.inputs);
  a.rows = static_cast<int>(args.rows);
  a.x = args.x.data;
  a.x_dtype = args.x.dtype;
  a.x_stride = args.x.stride;
  a.order = packed.order_data();
  if (packed.site.prologue.kind == PrologueKind::rms_norm) a.norm_weight = args.norm_weight;
  a.to = to;
  launch(stream, dim3(static_cast<unsigned>(a.rows), static_cast<unsigned>(stage_parts(layout))), dim3(kThreads), 0,
         Overlap::yes, stage_kernel, a);
}

}  // namespace nibble::gpu
