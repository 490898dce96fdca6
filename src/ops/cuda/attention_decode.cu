// Attention of rows one by one: decode steps, and everything that the tensor core kernel does not take (f32, and f32
// caches). What bounds it is reading K and V.
//
// A cluster of up to eight blocks shares the keys of one (row, kv head): each takes an equal part of the row's length,
// known on the device only, so that a captured step stays balanced while sequences grow, and the parts are merged
// through distributed shared memory. Against partial results in global memory this saves a second kernel or a ticket:
// either costs some 1.5 us (a kernel boundary or a fence and an atomic, then a trip to L2 for the partials), which at
// batch 1 is as much as reading a third of the keys. It needs no workspace either.
//
// Inside a block warps go their own way. A group of `Lanes` lanes holds one key's row, 16 bytes a lane (a vector), and
// takes four keys at a time; a lane copies exactly the vectors that it reads itself into shared memory, three steps
// ahead, so that the loop needs no barrier. Scores, the largest score and the sums are kept per group of lanes and
// merged once at the end. All q heads of a kv head (up to `Heads`) use each vector that is read.
#include "ops/cuda/attention_parts.h"
#include "ops/cuda/kv_cache.cuh"

#include <cooperative_groups.h>

#include <algorithm>
#include <limits>

namespace nibble::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
// Keys that a group of lanes takes at once: four vectors of K and four of V a thread and step keep 16 KB a block and
// stage in flight, and four scales are one vector.
constexpr int kKeys = 4;
// The most blocks a cluster can have everywhere.
constexpr int kMostParts = 8;
// A part shorter than this is not worth a block.
constexpr std::int64_t kLeastPart = 32;
// Blocks a multiprocessor to aim at: as many as fit by shared memory (48 KB of copies in flight each).
constexpr std::int64_t kBlocksPerProcessor = 4;
// Bytes of K and of V that each block asks for ahead of the kernel before it: one cache line a thread.
constexpr int kLineBytes = 128;

struct RowsParameters {
  const void* q = nullptr;
  const void* k = nullptr;  // the rows' own keys and values, to be stored first; null where they are stored
  const void* v = nullptr;
  void* y = nullptr;
  std::int64_t q_stride = 0;
  std::int64_t k_stride = 0;
  std::int64_t v_stride = 0;
  std::int64_t y_stride = 0;
  DType q_type = DType::f32;
  DType k_type = DType::f32;
  DType v_type = DType::f32;
  DType y_type = DType::f32;
  const std::int32_t* positions = nullptr;
  const std::int32_t* slots = nullptr;
  KvCache cache;
  Rotation rotation;
  std::int32_t group = 1;  // q heads a kv head
  std::int32_t tiles = 1;  // pieces that a group is cut into
  std::int32_t parts = 1;  // blocks a cluster
  std::int32_t window = 0;
  float q_factor = 1;
  float cap = 0;  // > 0: scores become cap * tanh(score), in base 2
};

/// The keys of one block: [begin, end), of which those before `first` do not count. begin is a multiple of four.
struct KeyRange {
  int first;
  int begin;
  int end;
};

__device__ __forceinline__ KeyRange key_range(int position, int window, int part, int parts) {
  KeyRange range;
  range.first = window > 0 ? max(0, position - window + 1) : 0;
  const int origin = range.first & ~3;
  const int share = (position + 1 - origin + parts - 1) / parts;
  const int length = (share + 3) & ~3;
  range.begin = origin + part * length;
  range.end = min(range.begin + length, position + 1);
  return range;
}

// What the block will read, into L2, before the kernel that this one waits for has ended. Positions and slots may not
// be final yet: then it is the wrong memory that is fetched, but L2 is where all writes meet, so that nothing can be
// stale.
__device__ __forceinline__ void prefetch(const RowsParameters& p, int row, int kv_head, int part) {
  const int position = min(max(__ldcg(p.positions + row), 0), p.cache.capacity - 1);
  const int slot = min(max(__ldcg(p.slots + row), 0), p.cache.slots - 1);
  const KeyRange range = key_range(position, p.window, part, p.parts);
  const int offset = static_cast<int>(threadIdx.x) * kLineBytes;
  if (range.begin >= range.end || offset >= (range.end - range.begin) * p.cache.row_bytes) return;
  const std::int64_t from = static_cast<std::int64_t>(range.begin) * p.cache.row_bytes + offset;
  asm volatile("prefetch.global.L2 [%0];" ::"l"(head_codes(p.cache, p.cache.k, slot, kv_head) + from));
  asm volatile("prefetch.global.L2 [%0];" ::"l"(head_codes(p.cache, p.cache.v, slot, kv_head) + from));
}

/// Where things lie in the block's shared memory.
template <typename Code, int Lanes, int Vectors, int Heads>
struct Shared {
  static constexpr int kStages = Vectors == 1 ? 3 : 2;
  static constexpr int kSlots = kKeys * Vectors;  // vectors of K, and of V, a thread and stage
  static constexpr int kGroups = kWarps * (32 / Lanes);
  static constexpr int kScaleStages = kHasScales<Code> ? kStages : 1;  // an array cannot be empty
  static constexpr int kMaxWidth = Lanes * Vectors * kVectorElements<Code>;

  uint4 ring[kStages][2][kSlots][kThreads];
  float4 scales[kScaleStages][2][kGroups];
  float q[Heads * kMaxWidth];
  uint4 fresh[2][Lanes * Vectors];  // the newest token's rows of k and v
  float fresh_scale[2];
  float largest[kWarps + 1][Heads];  // of each warp, then of the block
  float sum[kWarps + 1][Heads];

  /// Sums of values, [kWarps + 1][Heads][width], over the ring when that is done with.
  __device__ float* values() { return reinterpret_cast<float*>(ring); }
  static_assert((kWarps + 1) * Heads * kMaxWidth * sizeof(float) <= sizeof(ring));
};

template <typename Code, int Lanes, int Vectors, int Heads>
class RowAttention {
  using Memory = Shared<Code, Lanes, Vectors, Heads>;
  static constexpr int kElements = kVectorElements<Code>;
  static constexpr int kStages = Memory::kStages;
  static constexpr int kGroupsPerWarp = 32 / Lanes;
  static constexpr int kWarpKeys = kGroupsPerWarp * kKeys;
  static constexpr int kBlockKeys = kWarps * kWarpKeys;
  static constexpr unsigned kAll = 0xffffffffu;

 public:
  __device__ RowAttention(const RowsParameters& params, Memory& memory)
      : p_(params),
        m_(memory),
        part_(static_cast<int>(blockIdx.x) % params.parts),
        row_(static_cast<int>(blockIdx.x) / params.parts),
        kv_head_(static_cast<int>(blockIdx.y) / params.tiles),
        tile_(static_cast<int>(blockIdx.y) % params.tiles),
        tid_(static_cast<int>(threadIdx.x)),
        warp_(tid_ / 32),
        lane_(tid_ % Lanes),
        group_((tid_ % 32) / Lanes),
        row_vectors_(params.cache.row_bytes / 16),
        width_(row_vectors_ * kElements),
        heads_(min(Heads, params.group - tile_ * Heads)) {}

  __device__ void run() {
    prefetch(p_, row_, kv_head_, part_);
    pdl_wait();
    position_ = p_.positions[row_];
    slot_ = p_.slots[row_];
    range_ = key_range(position_, p_.window, part_, p_.parts);
    // The newest key, where this block has it and it is not in the cache yet; -1 is no key.
    fresh_ = p_.k != nullptr && range_.begin <= position_ && position_ < range_.end ? position_ : -1;
    k_ = head_codes(p_.cache, p_.cache.k, slot_, kv_head_);
    v_ = head_codes(p_.cache, p_.cache.v, slot_, kv_head_);
    steps_ = range_.end > range_.begin ? (range_.end - range_.begin + kBlockKeys - 1) / kBlockKeys : 0;
#pragma unroll
    for (int step = 0; step < kStages; ++step) copy(step, step);
    // While the first keys are on their way:
    load_q();
    if (fresh_ >= 0) store_newest();
    __syncthreads();
    fetch_q();
    for (int step = 0; step < steps_; ++step) {
      const int stage = step % kStages;
      copies_wait<kStages - 1>();
      if constexpr (kHasScales<Code>) __syncwarp();  // lanes read scales that others of their group copied
      attend(step, stage);
      __syncwarp();
      copy(step + kStages, stage);
    }
    merge_warps();
    if (p_.parts == 1) {
      finish_alone();
    } else {
      finish_cluster();
    }
  }

 private:
  __device__ int first_key(int step) const {
    return range_.begin + step * kBlockKeys + warp_ * kWarpKeys + group_ * kKeys;
  }

  // Starts this thread's copies of a step; a group of copies is closed even when there is nothing left to copy, so that
  // waiting counts right.
  __device__ void copy(int step, int stage) {
    if (step < steps_) {
      const int key0 = first_key(step);
#pragma unroll
      for (int u = 0; u < kKeys; ++u) {
        const int key = key0 + u;
        const bool stored = key < range_.end && key != fresh_;
#pragma unroll
        for (int j = 0; j < Vectors; ++j) {
          const int vector = j * Lanes + lane_;
          const bool wanted = stored && vector < row_vectors_;
          const std::int64_t from = wanted ? static_cast<std::int64_t>(key) * p_.cache.row_bytes + vector * 16 : 0;
          copy_16(&m_.ring[stage][0][u * Vectors + j][tid_], k_ + from, wanted);
          copy_16(&m_.ring[stage][1][u * Vectors + j][tid_], v_ + from, wanted);
        }
      }
      if constexpr (kHasScales<Code>) {
        // Four scales from a multiple of four: inside the head's scales, whose number is a multiple of four too.
        if (lane_ < 2) {
          const bool wanted = key0 < range_.end;
          const float* const scales = head_scales(p_.cache, lane_ == 0 ? p_.cache.k : p_.cache.v, slot_, kv_head_);
          copy_16(&m_.scales[stage][lane_][warp_ * kGroupsPerWarp + group_], scales + (wanted ? key0 : 0), wanted);
        }
      }
    }
    copies_end_group();
  }

  // The tile's heads of q into shared memory, rotated and scaled; zeros behind head_dim and for heads that are not.
  __device__ void load_q() {
    const int head_dim = p_.cache.head_dim;
    const int lane = tid_ % 32;
    for (int h = warp_; h < Heads; h += kWarps) {
      float* const to = m_.q + h * width_;
      if (h >= heads_) {
        for (int d = lane; d < width_; d += 32) to[d] = 0;
        continue;
      }
      const std::int64_t start = row_ * p_.q_stride + static_cast<std::int64_t>(first_head() + h) * head_dim;
      const HeadPairs head = load_head(p_.q, start, p_.q_type, head_dim, p_.rotation, position_);
      each_element(head, head_dim, p_.rotation, [&](int place, float value) { to[place] = value * p_.q_factor; });
      for (int d = head_dim + lane; d < width_; d += 32) to[d] = 0;
    }
  }

  __device__ int first_head() const { return kv_head_ * p_.group + tile_ * Heads; }

  // k and v of the row itself: rounded as the cache does, used from shared memory, and (by one tile) stored.
  __device__ void store_newest() {
    // By the warps that have no q to wait for where there is one head.
    if (warp_ < kWarps - 2) return;
    const bool is_k = warp_ == kWarps - 2;
    const int head_dim = p_.cache.head_dim;
    const std::int64_t start =
        row_ * (is_k ? p_.k_stride : p_.v_stride) + static_cast<std::int64_t>(kv_head_) * head_dim;
    const Rotation rotation = is_k ? p_.rotation : Rotation{};
    const HeadPairs head =
        load_head(is_k ? p_.k : p_.v, start, is_k ? p_.k_type : p_.v_type, head_dim, rotation, position_);
    const CodeScale scale = code_scale<Code>(head);
    write_row<Code>(head, scale, rotation, head_dim, p_.cache.row_bytes,
                    reinterpret_cast<std::byte*>(m_.fresh[is_k ? 0 : 1]));
    if (tid_ % 32 == 0) m_.fresh_scale[is_k ? 0 : 1] = scale.scale;
    if (tile_ != 0) return;
    std::byte* const codes = (is_k ? k_ : v_) + static_cast<std::int64_t>(position_) * p_.cache.row_bytes;
    write_row<Code>(head, scale, rotation, head_dim, p_.cache.row_bytes, codes);
    if constexpr (kHasScales<Code>) {
      if (tid_ % 32 == 0) {
        head_scales(p_.cache, is_k ? p_.cache.k : p_.cache.v, slot_, kv_head_)[position_] = scale.scale;
      }
    }
  }

  // This lane's elements of q into registers.
  __device__ void fetch_q() {
#pragma unroll
    for (int h = 0; h < Heads; ++h) {
#pragma unroll
      for (int j = 0; j < Vectors; ++j) {
        const int vector = j * Lanes + lane_;
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
          q_[h][j * kElements + e] = vector < row_vectors_ ? m_.q[h * width_ + vector * kElements + e] : 0.0f;
          sums_[h][j * kElements + e] = 0;
        }
      }
      largest_[h] = -INFINITY;
      total_[h] = 0;
    }
  }

  __device__ uint4 vector_of(int which, int stage, int u, int j, bool fresh) const {
    const int vector = j * Lanes + lane_;
    const uint4* const from =
        fresh && vector < row_vectors_ ? &m_.fresh[which][vector] : &m_.ring[stage][which][u * Vectors + j][tid_];
    return *from;
  }

  // Four keys of each group of lanes.
  __device__ void attend(int step, int stage) {
    const int key0 = first_key(step);
    float dots[Heads][kKeys];
#pragma unroll
    for (int u = 0; u < kKeys; ++u) {
      const bool fresh = key0 + u == fresh_;
#pragma unroll
      for (int h = 0; h < Heads; ++h) dots[h][u] = 0;
#pragma unroll
      for (int j = 0; j < Vectors; ++j) {
        float k[kElements];
        decode_vector(vector_of(0, stage, u, j, fresh), k, Code{});
#pragma unroll
        for (int h = 0; h < Heads; ++h) {
#pragma unroll
          for (int e = 0; e < kElements; ++e) dots[h][u] = fmaf(q_[h][j * kElements + e], k[e], dots[h][u]);
        }
      }
    }

    // From here on a lane has one of its group's four keys to itself (lanes apart by a multiple of 4 have the same).
    const bool bit0 = (lane_ & 1) != 0;
    const bool bit1 = (lane_ & 2) != 0;
    const int mine = (bit0 ? 2 : 0) + (bit1 ? 1 : 0);
    const int key = key0 + mine;
    const bool counts = key >= range_.first && key < range_.end;
    float k_scale = 1;
    float v_scale = 1;
    if constexpr (kHasScales<Code>) {
      const int at = warp_ * kGroupsPerWarp + group_;
      const bool fresh = key == fresh_;
      k_scale = fresh ? m_.fresh_scale[0] : reinterpret_cast<const float*>(&m_.scales[stage][0][at])[mine];
      v_scale = fresh ? m_.fresh_scale[1] : reinterpret_cast<const float*>(&m_.scales[stage][1][at])[mine];
    }
    float weights[Heads];
#pragma unroll
    for (int h = 0; h < Heads; ++h) {
      const float dot = sum_of_mine(dots[h], bit0, bit1);  // all lanes take part in it
      const float score = counts ? capped(dot * k_scale) : -INFINITY;
      float largest = fmaxf(score, __shfl_xor_sync(kAll, score, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, 2));
      largest = fmaxf(largest, largest_[h]);
      const float offset = as_offset(largest);
      const float fade = exp2_fast(largest_[h] - offset);
      const float weight = exp2_fast(score - offset);
      largest_[h] = largest;
      total_[h] = total_[h] * fade + weight;
      weights[h] = counts ? weight * v_scale : 0.0f;  // what lies where no scale has been stored may be NaN
#pragma unroll
      for (int e = 0; e < Vectors * kElements; ++e) sums_[h][e] *= fade;
    }

#pragma unroll
    for (int u = 0; u < kKeys; ++u) {
      const bool fresh = key0 + u == fresh_;
      // The lane whose key is u, see `mine`.
      const int owner = (u >> 1) + 2 * (u & 1);
      float weight[Heads];
#pragma unroll
      for (int h = 0; h < Heads; ++h) weight[h] = __shfl_sync(kAll, weights[h], owner, Lanes);
#pragma unroll
      for (int j = 0; j < Vectors; ++j) {
        float v[kElements];
        decode_vector(vector_of(1, stage, u, j, fresh), v, Code{});
#pragma unroll
        for (int h = 0; h < Heads; ++h) {
#pragma unroll
          for (int e = 0; e < kElements; ++e) {
            sums_[h][j * kElements + e] = fmaf(weight[h], v[e], sums_[h][j * kElements + e]);
          }
        }
      }
    }
  }

  // The sum over the group's lanes of the dot product of this lane's key. Each of the first two exchanges gives half of
  // the keys away: five shuffles for 16 lanes and four keys instead of sixteen.
  __device__ static float sum_of_mine(const float (&dots)[kKeys], bool bit0, bool bit1) {
    const float low = (bit0 ? dots[2] : dots[0]) + __shfl_xor_sync(kAll, bit0 ? dots[0] : dots[2], 1);
    const float high = (bit0 ? dots[3] : dots[1]) + __shfl_xor_sync(kAll, bit0 ? dots[1] : dots[3], 1);
    float sum = (bit1 ? high : low) + __shfl_xor_sync(kAll, bit1 ? low : high, 2);
#pragma unroll
    for (int offset = 4; offset < Lanes; offset *= 2) sum += __shfl_xor_sync(kAll, sum, offset);
    return sum;
  }

  __device__ float capped(float score) const { return p_.cap > 0 ? p_.cap * tanhf(score) : score; }

  // The sums of the block's warps become one, in slot kWarps.
  __device__ void merge_warps() {
    float* const values = m_.values();
    __syncthreads();  // the ring is to be written over
#pragma unroll
    for (int h = 0; h < Heads; ++h) {
      float largest = largest_[h];
#pragma unroll
      for (int offset = Lanes; offset < 32; offset *= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, offset));
      }
      const float fade = exp2_fast(largest_[h] - as_offset(largest));
      float total = total_[h] * fade;
      total += __shfl_xor_sync(kAll, total, 1);  // lanes 0 to 3 of a group have its four keys
      total += __shfl_xor_sync(kAll, total, 2);
#pragma unroll
      for (int offset = Lanes; offset < 32; offset *= 2) total += __shfl_xor_sync(kAll, total, offset);
      if (tid_ % 32 == 0) {
        m_.largest[warp_][h] = largest;
        m_.sum[warp_][h] = total;
      }
#pragma unroll
      for (int e = 0; e < Vectors * kElements; ++e) {
        float value = sums_[h][e] * fade;
#pragma unroll
        for (int offset = Lanes; offset < 32; offset *= 2) value += __shfl_xor_sync(kAll, value, offset);
        const int vector = (e / kElements) * Lanes + lane_;
        if (group_ == 0 && vector < row_vectors_) {
          values[(warp_ * Heads + h) * width_ + vector * kElements + e % kElements] = value;
        }
      }
    }
    __syncthreads();
    for (int i = tid_; i < heads_ * width_; i += kThreads) {
      const int h = i / width_;
      float largest = m_.largest[0][h];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) largest = fmaxf(largest, m_.largest[w][h]);
      float value = 0;
      float total = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float fade = exp2_fast(m_.largest[w][h] - as_offset(largest));
        value += fade * values[w * Heads * width_ + i];
        total += fade * m_.sum[w][h];
      }
      values[kWarps * Heads * width_ + i] = value;
      if (i % width_ == 0) {
        m_.largest[kWarps][h] = largest;
        m_.sum[kWarps][h] = total;
      }
    }
  }

  __device__ void write(int h, int d, float value) {
    if (d >= p_.cache.head_dim) return;
    const std::int64_t column = static_cast<std::int64_t>(first_head() + h) * p_.cache.head_dim + d;
    store_float(p_.y, row_ * p_.y_stride + column, p_.y_type, value);
  }

  __device__ void finish_alone() {
    __syncthreads();
    const float* const values = m_.values() + kWarps * Heads * width_;
    for (int i = tid_; i < heads_ * width_; i += kThreads) {
      const int h = i / width_;
      write(h, i % width_, values[i] / m_.sum[kWarps][h]);
    }
  }

  // Each block merges a share of the elements, over the parts in their order. There are clusters from compute
  // capability 9.0 on; before, parts_for() leaves each row to one block.
  __device__ void finish_cluster() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cg::cluster_group cluster = cg::this_cluster();
    cluster.sync();
    float* const values = m_.values() + kWarps * Heads * width_;
    for (int i = part_ * kThreads + tid_; i < heads_ * width_; i += p_.parts * kThreads) {
      const int h = i / width_;
      float largest[kMostParts];
      float sum[kMostParts];
      float value[kMostParts];
#pragma unroll
      for (int part = 0; part < kMostParts; ++part) {
        largest[part] = -INFINITY;
        sum[part] = 0;
        value[part] = 0;
        if (part < p_.parts) {
          largest[part] = *cluster.map_shared_rank(&m_.largest[kWarps][h], part);
          sum[part] = *cluster.map_shared_rank(&m_.sum[kWarps][h], part);
          value[part] = *cluster.map_shared_rank(values + i, part);
        }
      }
      float most = largest[0];
#pragma unroll
      for (int part = 1; part < kMostParts; ++part) most = fmaxf(most, largest[part]);
      float total = 0;
      float all = 0;
#pragma unroll
      for (int part = 0; part < kMostParts; ++part) {
        const float fade = exp2_fast(largest[part] - as_offset(most));
        total += fade * sum[part];
        all += fade * value[part];
      }
      write(h, i % width_, all / total);
    }
    cluster.sync();  // a block's memory stays while others read it
#endif
  }

  const RowsParameters& p_;
  Memory& m_;
  const int part_, row_, kv_head_, tile_;
  const int tid_, warp_, lane_, group_;
  const int row_vectors_;  // vectors of a key that there are
  const int width_;        // elements of a head, padding included
  const int heads_;        // q heads of this tile that there are
  int position_, slot_, fresh_, steps_;
  KeyRange range_;
  std::byte* k_;
  std::byte* v_;
  float q_[Heads][Vectors * kElements];
  float sums_[Heads][Vectors * kElements];
  float largest_[Heads];
  float total_[Heads];  // over this lane's own keys
};

// The registers that q and the sums take, 2 * Heads * elements a lane, decide how many blocks can share a
// multiprocessor.
template <typename Code, int Vectors, int Heads>
constexpr int least_blocks() {
  constexpr int kHeld = 2 * Heads * Vectors * kVectorElements<Code>;
  return kHeld <= 32 ? 4 : kHeld <= 64 ? 3 : 2;
}

template <typename Code, int Lanes, int Vectors, int Heads>
__global__ void __launch_bounds__(kThreads, (least_blocks<Code, Vectors, Heads>()))
    rows_kernel(const __grid_constant__ RowsParameters p) {
  extern __shared__ uint4 shared[];
  pdl_launch();
  RowAttention<Code, Lanes, Vectors, Heads>(p, *reinterpret_cast<Shared<Code, Lanes, Vectors, Heads>*>(shared)).run();
}

// As nibble::launch with overlap, in clusters of `parts` blocks.
template <typename Code, int Lanes, int Vectors, int Heads>
void launch_rows(RowsParameters p, std::int64_t rows, CudaStream& stream) {
  using Memory = Shared<Code, Lanes, Vectors, Heads>;
  p.tiles = ceil_div(p.group, Heads);
  const auto kernel = rows_kernel<Code, Lanes, Vectors, Heads>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Memory)),
             "asking for shared memory for attention");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(rows * p.parts), static_cast<unsigned>(p.cache.kv_heads * p.tiles));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = sizeof(Memory);
  config.stream = stream.handle();
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(p.parts), 1, 1};
  config.attrs = attributes;
  config.numAttrs = p.parts > 1 ? 2 : stream.overlaps() ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, p), "launching the attention of rows");
}

template <typename Code, int Lanes, int Vectors>
void launch_heads(const RowsParameters& p, std::int64_t rows, CudaStream& stream) {
  if (p.group == 1) return launch_rows<Code, Lanes, Vectors, 1>(p, rows, stream);
  // Eight heads of f16 take 128 registers a lane for q and the sums, and of wider vectors more than there are.
  if constexpr (sizeof(Code) == 2) {
    if (p.group > 4) return launch_rows<Code, Lanes, Vectors, 8>(p, rows, stream);
  }
  launch_rows<Code, Lanes, Vectors, 4>(p, rows, stream);
}

template <typename Code>
void launch_code(const RowsParameters& p, std::int64_t rows, CudaStream& stream) {
  const int vectors = p.cache.row_bytes / 16;
  if constexpr (sizeof(Code) == 4) {
    if (vectors > 32) return launch_heads<Code, 32, 2>(p, rows, stream);
  }
  if constexpr (sizeof(Code) >= 2) {
    if (vectors > 16) return launch_heads<Code, 32, 1>(p, rows, stream);
  }
  if constexpr (sizeof(Code) <= 2) {
    if (vectors <= 8) return launch_heads<Code, 8, 1>(p, rows, stream);
  }
  launch_heads<Code, 16, 1>(p, rows, stream);
}

// Blocks that share a row's keys: enough to fill the GPU, in powers of two.
int parts_for(std::int64_t rows, const KvCache& cache, const CudaDevice& device) {
  if (device.capability() < 90) return 1;
  const std::int64_t pairs = rows * cache.kv_heads;
  int parts = 1;
  while (parts < kMostParts && pairs * parts < kBlocksPerProcessor * device.multiprocessors() &&
         cache.capacity >= 2 * parts * kLeastPart) {
    parts *= 2;
  }
  return parts;
}

}  // namespace

void attend_rows(const AttentionArgs& args, const CudaDevice& device, CudaStream& stream) {
  if (args.map.rows == 0) return;
  RowsParameters p;
  p.q = args.q.data;
  p.q_stride = args.q.stride;
  p.q_type = args.q.dtype;
  p.y = args.y.data;
  p.y_stride = args.y.stride;
  p.y_type = args.y.dtype;
  p.positions = args.map.positions;
  p.slots = args.map.slots;
  p.cache = kv_cache(args.cache);
  p.group = static_cast<std::int32_t>(args.heads / args.cache.kv_heads);
  p.window = static_cast<std::int32_t>(std::min<std::int64_t>(args.window, std::numeric_limits<std::int32_t>::max()));
  const ScoreFactors factors = score_factors(args);
  p.q_factor = factors.capped ? factors.before : factors.after;
  p.cap = factors.capped ? factors.after : 0;
  if (args.store) {
    p.k = args.store->k.data;
    p.k_stride = args.store->k.stride;
    p.k_type = args.store->k.dtype;
    p.v = args.store->v.data;
    p.v_stride = args.store->v.stride;
    p.v_type = args.store->v.dtype;
    p.rotation = {args.store->table, static_cast<std::int32_t>(args.store->dims), args.store->interleaved};
  }
  p.parts = parts_for(args.map.rows, p.cache, device);
  with_code(args.cache.dtype, [&](auto code) { launch_code<decltype(code)>(p, args.map.rows, stream); });
}

}  // namespace nibble::cuda
