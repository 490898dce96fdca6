// Which kernels an attention call becomes.
#include "core/error.h"
#include "ops/cuda/attention_parts.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/kv_cache.h"

#include <limits>

namespace nibble::cuda {
namespace {

bool is_16_bit(DType dtype) { return dtype == DType::f16 || dtype == DType::bf16; }

void check_shape(const KvView& shape) {
  const DType t = shape.dtype;
  if (t != DType::f32 && !is_16_bit(t) && !has_scales(t)) {
    fail("a KV cache of type {} is not supported on the GPU; use f32, f16, bf16, i8 or f8_e4m3", name_of(t));
  }
  if (shape.head_dim < 2 || shape.head_dim > kMaxHeadDim || shape.head_dim % 2 != 0) {
    fail("attention on the GPU takes heads of an even size up to {}, not {}", kMaxHeadDim, shape.head_dim);
  }
  // What kernels count in 32 bits: sequences, heads, and the bytes of one head's tokens.
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max() / 4;
  if (shape.slots < 0 || shape.slots > kMost || shape.capacity < 0 || shape.kv_heads < 1 || shape.kv_heads > kMost ||
      shape.capacity > kMost / (shape.head_dim * static_cast<std::int64_t>(bytes_of(t)) + 15)) {
    fail("a KV cache of {} sequences of {} tokens with {} heads of {} is beyond what the GPU's kernels count",
         shape.slots, shape.capacity, shape.kv_heads, shape.head_dim);
  }
}

void check_heads(std::int64_t heads, const KvView& cache) {
  if (heads < 1 || heads % cache.kv_heads != 0) {
    fail("attention has {} heads over {} of keys and values: the first should be a multiple of the second", heads,
         cache.kv_heads);
  }
}

void check_store(const AttentionStore& store, const KvView& cache) {
  check_activations(store.k, "k");
  check_activations(store.v, "v");
  if (store.dims < 0 || store.dims % 2 != 0 || store.dims > cache.head_dim) {
    fail("cannot rotate {} dimensions of a head of {}; expected an even number of at most that", store.dims,
         cache.head_dim);
  }
}

}  // namespace

std::size_t kv_bytes(const KvView& shape) {
  check_shape(shape);
  constexpr const char* kWhat = "the KV cache";
  const std::int64_t heads = checked_mul(shape.slots, shape.kv_heads, kWhat);
  // The widest row is 1024 bytes, and scales add at most a sixteenth byte for each: this bounds all products below.
  checked_mul(checked_mul(heads, shape.capacity + 4, kWhat), std::int64_t{2048}, kWhat);
  const KvCache cache = kv_cache(shape);
  const std::int64_t scales = heads * cache.scale_stride * static_cast<std::int64_t>(sizeof(float));
  // V follows K, and both begin where a cache line does.
  return static_cast<std::size_t>(round_up<std::int64_t>(cache.scale_offset + scales, 256));
}

std::size_t attention_workspace(std::int64_t, std::int64_t heads, const KvView& cache, const CudaDevice&) {
  check_shape(cache);
  check_heads(heads, cache);
  return 0;  // parts of a row's keys are merged through shared memory
}

void attention(const AttentionArgs& args, const CudaDevice& device, CudaStream& stream) {
  check_shape(args.cache);
  check_heads(args.heads, args.cache);
  check_activations(args.q, "q");
  check_activations(args.y, "y");
  if (args.store) check_store(*args.store, args.cache);
  if (args.map.rows == args.map.sequences) {
    attend_rows(args, device, stream);
    return;
  }
  AttentionArgs rest = args;
  if (args.store) {
    store_rows({args.map, args.q, args.heads, *args.store, args.cache}, stream);
    rest.store.reset();
  }
  const bool tiles = is_16_bit(args.q.dtype) && args.cache.dtype != DType::f32;
  if (tiles) {
    attend_tiles(rest, stream);
  } else {
    attend_rows(rest, device, stream);
  }
}

}  // namespace nibble::cuda
