// Attention of rows one by one: decode steps, and everything that the tensor core kernel does not take (f32, and f32
// caches). What bounds it is reading K and V.
//
// A cluster of up to eight blocks shares the keys of one (row, kv head): each takes an equal part of the row's length,
// known on the device only, so that a captured step stays balanced while sequences grow. What the warps of all parts
// have is merged in shared memory: each block merges a share of the elements, which the others send it. Against partial
// results in global memory this saves a second kernel or a ticket: either costs some 1.5 us (a kernel boundary or a
// fence and an atomic, then a trip to L2 for the partials), which at batch 1 is as much as reading a third of the keys.
// It needs no workspace either.
//
// Keys and values of earlier steps do not depend on the kernel right before this one, which computes the newest: they
// are asked for while that one ends.
//
// Inside a block warps go their own way. A group of `Lanes` lanes holds one key's row, 16 bytes a lane (a vector), and
// takes four keys at a time; a lane copies exactly the vectors that it reads itself into shared memory, three steps
// ahead, so that the loop needs no barrier. Scores, the largest score and the sums are kept per group of lanes and
// merged once at the end. All q heads of a kv head (up to `Heads`) use each vector that is read.
#include "core/cuda/cluster.cuh"
#include "ops/cuda/attention_parts.h"
#include "ops/cuda/kv_cache.cuh"

#include <algorithm>
#include <limits>

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
// Keys that a group of lanes takes at once: four vectors of K and four of V a thread and step keep 16 KB a block and
// stage in flight, and four scales are one vector.
constexpr int kKeys = 4;
// The most blocks a cluster can have everywhere.
constexpr int kMostParts = 8;
// Keys of a part: shorter than the least it is not worth a block, and the good ones keep their rings busy for some
// rounds.
constexpr std::int64_t kLeastPart = 32;
constexpr std::int64_t kGoodPart = 256;
// Blocks a multiprocessor to aim at: with good parts, and with any. Four are resident (48 KB of copies in flight each).
constexpr std::int64_t kManyBlocks = 8;
constexpr std::int64_t kFewBlocks = 2;

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
  // What each warp of the cluster has, by part and warp: the largest score and the sum of weights of each head, and its
  // sums of values that this block merges, `share` of them.
  float2 totals[kMostParts * kWarps][Heads];
  alignas(16) float received[kWarps * (Heads * kMaxWidth + kMostParts * 4)];
  std::uint64_t all_received;
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
        heads_(min(Heads, params.group - tile_ * Heads)),
        share_(((heads_ * width_ + params.parts - 1) / params.parts + 3) & ~3) {}

  __device__ void run() {
    if (p_.parts > 1) {
      if (tid_ == 0) {
        init_barrier(shared_address(&m_.all_received));
        expect();
      }
      cluster_arrive();
    }
    // Where the newest keys are in the cache already, the kernel before this one may have put them there.
    if (p_.k == nullptr) pdl_wait();
    position_ = __ldcg(p_.positions + row_);
    slot_ = __ldcg(p_.slots + row_);
    range_ = key_range(position_, p_.window, part_, p_.parts);
    // The newest key, where this block has it and it is not in the cache yet; -1 is no key.
    fresh_ = p_.k != nullptr && range_.begin <= position_ && position_ < range_.end ? position_ : -1;
    k_ = head_codes(p_.cache, p_.cache.k, slot_, kv_head_);
    v_ = head_codes(p_.cache, p_.cache.v, slot_, kv_head_);
    steps_ = range_.end > range_.begin ? (range_.end - range_.begin + kBlockKeys - 1) / kBlockKeys : 0;
#pragma unroll
    for (int step = 0; step < kStages; ++step) copy(step, step);
    // While the first keys are on their way:
    const HeadAngles angles = load_angles(p_.rotation, position_);
    if (p_.parts > 1) cluster_wait();
    if (p_.k != nullptr) pdl_wait();
    pdl_launch();
    load_q(angles);
    if (fresh_ >= 0) store_newest(angles);
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
    hand_over();
    merge();
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
  __device__ void load_q(const HeadAngles& angles) {
    const int head_dim = p_.cache.head_dim;
    const int lane = tid_ % 32;
    for (int h = warp_; h < Heads; h += kWarps) {
      float* const to = m_.q + h * width_;
      if (h >= heads_) {
        for (int d = lane; d < width_; d += 32) to[d] = 0;
        continue;
      }
      const std::int64_t start = row_ * p_.q_stride + static_cast<std::int64_t>(first_head() + h) * head_dim;
      const HeadPairs head = load_head(p_.q, start, p_.q_type, head_dim, p_.rotation, angles);
      each_element(head, head_dim, p_.rotation, [&](int place, float value) { to[place] = value * p_.q_factor; });
      for (int d = head_dim + lane; d < width_; d += 32) to[d] = 0;
    }
  }

  __device__ int first_head() const { return kv_head_ * p_.group + tile_ * Heads; }

  // k and v of the row itself: rounded as the cache does, used from shared memory, and (by one tile) stored.
  __device__ void store_newest(const HeadAngles& angles) {
    // By the warps that have no q to wait for where there is one head.
    if (warp_ < kWarps - 2) return;
    const bool is_k = warp_ == kWarps - 2;
    const int head_dim = p_.cache.head_dim;
    const std::int64_t start =
        row_ * (is_k ? p_.k_stride : p_.v_stride) + static_cast<std::int64_t>(kv_head_) * head_dim;
    const Rotation rotation = is_k ? p_.rotation : Rotation{};
    const HeadPairs head =
        load_head(is_k ? p_.k : p_.v, start, is_k ? p_.k_type : p_.v_type, head_dim, rotation, angles);
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

  // How many elements this block merges.
  __device__ int own_elements() const { return max(0, min(share_, heads_ * width_ - part_ * share_)); }

  // The bytes that come from all parts, this one included.
  __device__ void expect() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const int from_warp = own_elements() * static_cast<int>(sizeof(float)) + heads_ * static_cast<int>(sizeof(float2));
    expect_bytes(shared_address(&m_.all_received), p_.parts * kWarps * from_warp);
#endif
  }

  template <typename Value>
  __device__ void put(void* here, int part, Value value) {
    if (p_.parts == 1) {
      *static_cast<Value*>(here) = value;
    } else {
      send(here, part, &m_.all_received, value);
    }
  }

  // Gives what this warp has to the blocks that merge it.
  __device__ void hand_over() {
    constexpr int kQuads = Vectors * kElements / 4;
    const int from = part_ * kWarps + warp_;
#pragma unroll
    for (int h = 0; h < Heads; ++h) {
      if (h >= heads_) break;
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
      const int lane = tid_ % 32;
      if (lane < p_.parts) put(&m_.totals[from][h], lane, make_float2(largest, total));
#pragma unroll
      for (int quad = 0; quad < kQuads; ++quad) {
        float4 value;
        float* const values = &value.x;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          values[i] = sums_[h][quad * 4 + i] * fade;
#pragma unroll
          for (int offset = Lanes; offset < 32; offset *= 2) values[i] += __shfl_xor_sync(kAll, values[i], offset);
        }
        const int vector = quad * 4 / kElements * Lanes + lane_;
        if (group_ != quad % kGroupsPerWarp || vector >= row_vectors_) continue;
        const int element = h * width_ + vector * kElements + quad * 4 % kElements;
        const int part = element / share_;
        put(&m_.received[from * share_ + element - part * share_], part, value);
      }
    }
  }

  // Merges this block's share of the elements, over the warps of all parts in their order; as many lanes take part in
  // an element as there are.
  __device__ void merge() {
    if (p_.parts == 1) {
      __syncthreads();
    } else {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      wait_barrier(shared_address(&m_.all_received), 0);
#endif
    }
    const int own = own_elements();
    const int sources = p_.parts * kWarps;
    const int split = share_ * 8 <= kThreads ? 8 : share_ * 4 <= kThreads ? 4 : share_ * 2 <= kThreads ? 2 : 1;
    const int step = kThreads / split;
    for (int base = 0; base < own; base += step) {
      const int at = min(base + tid_ / split, own - 1);
      const int element = part_ * share_ + at;
      const int h = element / width_;
      float most = -INFINITY;
      for (int from = tid_ % split; from < sources; from += split) most = fmaxf(most, m_.totals[from][h].x);
      for (int offset = 1; offset < split; offset *= 2) most = fmaxf(most, __shfl_xor_sync(kAll, most, offset));
      float total = 0;
      float value = 0;
      for (int from = tid_ % split; from < sources; from += split) {
        const float2 of = m_.totals[from][h];
        const float fade = exp2_fast(of.x - as_offset(most));
        total += fade * of.y;
        value += fade * m_.received[from * share_ + at];
      }
      for (int offset = 1; offset < split; offset *= 2) {
        total += __shfl_xor_sync(kAll, total, offset);
        value += __shfl_xor_sync(kAll, value, offset);
      }
      if (tid_ % split == 0 && base + tid_ / split < own) write(h, element - h * width_, value / total);
    }
  }

  __device__ void write(int h, int d, float value) {
    if (d >= p_.cache.head_dim) return;
    const std::int64_t column = static_cast<std::int64_t>(first_head() + h) * p_.cache.head_dim + d;
    store_float(p_.y, row_ * p_.y_stride + column, p_.y_type, value);
  }

  const RowsParameters& p_;
  Memory& m_;
  const int part_, row_, kv_head_, tile_;
  const int tid_, warp_, lane_, group_;
  const int row_vectors_;  // vectors of a key that there are
  const int width_;        // elements of a head, padding included
  const int heads_;        // q heads of this tile that there are
  const int share_;        // elements of the tile's heads that a block merges, a multiple of four
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
  RowAttention<Code, Lanes, Vectors, Heads>(p, *reinterpret_cast<Shared<Code, Lanes, Vectors, Heads>*>(shared)).run();
}

// In clusters of `parts` blocks.
template <typename Code, int Lanes, int Vectors, int Heads>
void launch_rows(RowsParameters p, std::int64_t rows, CudaStream& stream) {
  using Memory = Shared<Code, Lanes, Vectors, Heads>;
  p.tiles = ceil_div(p.group, Heads);
  constexpr auto kKernel = rows_kernel<Code, Lanes, Vectors, Heads>;
  allow_shared_memory<kKernel>(sizeof(Memory));
  launch(stream, dim3(static_cast<unsigned>(rows * p.parts), static_cast<unsigned>(p.cache.kv_heads * p.tiles)),
         dim3(kThreads), sizeof(Memory), Overlap::yes, Share::as_needed, static_cast<unsigned>(p.parts), kKernel, p);
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

// Blocks that share a row's keys, in powers of two: many short ones fill the GPU evenly while they last, but each costs
// a start and an end, so that parts become shorter than kGoodPart only where there would be too few. On an H100 (13B
// shapes, 1024 keys) batches of 1, 2, 4, 8 and 16 are fastest with 8, 4, 4, 4 and 2 parts.
int parts_for(std::int64_t rows, const KvCache& cache, const CudaDevice& device) {
  if (device.capability() < 90) return 1;
  const std::int64_t pairs = rows * cache.kv_heads;
  int parts = 1;
  const auto wanted = [&] {
    const bool good = cache.capacity >= 2 * parts * kGoodPart;
    const std::int64_t most = (good ? kManyBlocks : kFewBlocks) * device.multiprocessors();
    return pairs * parts < most && cache.capacity >= 2 * parts * kLeastPart;
  };
  while (parts < kMostParts && wanted()) parts *= 2;
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
