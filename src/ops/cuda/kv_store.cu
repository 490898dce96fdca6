// Rows of k and v into the cache, and the rotation of q and k on the way: one warp a head, which is read once and whose
// largest value (for 8-bit codes) a warp finds by itself.
#include "ops/cuda/attention_parts.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/kv_cache.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;

struct Activations {
  void* data = nullptr;
  std::int64_t stride = 0;
  DType dtype = DType::f32;
};

struct StoreParameters {
  Activations q, k, v;
  std::int32_t q_heads = 0;
  Rotation rotation;
  KvCache cache;
  const std::int32_t* positions = nullptr;
  const std::int32_t* slots = nullptr;
};

// blockIdx: row, and four of the heads of q (those to be rotated), k and v, in this order.
template <typename Code>
__global__ void __launch_bounds__(32 * kWarps) store_kernel(const StoreParameters p) {
  pdl_wait();
  pdl_launch();
  const std::int64_t row = blockIdx.x;
  const int head_dim = p.cache.head_dim;
  int unit = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x / 32);
  const int position = p.positions[row];
  const HeadAngles angles = load_angles(p.rotation, position);
  if (unit < p.q_heads) {
    const std::int64_t start = row * p.q.stride + static_cast<std::int64_t>(unit) * head_dim;
    const HeadPairs head = load_head(p.q.data, start, p.q.dtype, head_dim, p.rotation, angles);
    each_element(head, head_dim, p.rotation,
                 [&](int place, float value) { store_float(p.q.data, start + place, p.q.dtype, value); });
    return;
  }
  unit -= p.q_heads;
  if (unit >= 2 * p.cache.kv_heads) return;
  const bool is_k = unit < p.cache.kv_heads;
  const int kv_head = is_k ? unit : unit - p.cache.kv_heads;
  const Activations& x = is_k ? p.k : p.v;
  const Rotation rotation = is_k ? p.rotation : Rotation{};
  const HeadPairs head = load_head(x.data, row * x.stride + static_cast<std::int64_t>(kv_head) * head_dim, x.dtype,
                                   head_dim, rotation, angles);
  const CodeScale scale = code_scale<Code>(head);
  std::byte* const base = is_k ? p.cache.k : p.cache.v;
  const int slot = p.slots[row];
  std::byte* const codes =
      head_codes(p.cache, base, slot, kv_head) + static_cast<std::int64_t>(position) * p.cache.row_bytes;
  write_row<Code>(head, scale, rotation, head_dim, p.cache.row_bytes, codes);
  if constexpr (kHasScales<Code>) {
    if (threadIdx.x % 32 == 0) head_scales(p.cache, base, slot, kv_head)[position] = scale.scale;
  }
}

Activations activations(const MatrixRef& x) { return {x.data, x.stride, x.dtype}; }

}  // namespace

void store_rows(const StoreRows& args, CudaStream& stream) {
  check_activations(args.store.k, "k");
  check_activations(args.store.v, "v");
  if (args.map.rows == 0) return;
  StoreParameters p;
  p.k = activations(args.store.k);
  p.v = activations(args.store.v);
  if (args.q.data != nullptr && args.store.dims > 0) {
    p.q = activations(args.q);
    p.q_heads = static_cast<std::int32_t>(args.heads);
  }
  p.rotation = {args.store.table, static_cast<std::int32_t>(args.store.dims), args.store.interleaved};
  p.cache = kv_cache(args.cache);
  p.positions = args.map.positions;
  p.slots = args.map.slots;
  const std::int64_t units = p.q_heads + 2 * args.cache.kv_heads;
  const dim3 grid(static_cast<unsigned>(args.map.rows), static_cast<unsigned>(ceil_div<std::int64_t>(units, kWarps)));
  with_code(args.cache.dtype,
            [&](auto code) { launch(stream, grid, 32 * kWarps, 0, Overlap::yes, store_kernel<decltype(code)>, p); });
}

void kv_store(const KvStoreArgs& args, CudaStream& stream) {
  store_rows({args.map, {}, 0, {args.k, args.v, 0, false, nullptr}, args.cache}, stream);
}

}  // namespace nibble::cuda
