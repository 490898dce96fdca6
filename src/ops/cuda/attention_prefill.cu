// Attention of many rows of a sequence on tensor cores (mma.sync m16n8k16, f32 sums): a block takes 128 consecutive
// rows of one sequence and one q head, each of its eight warps 16 of them, and walks through the keys in tiles, the
// next tile's copies running while one is multiplied. Scores stay in registers: the layout of a product's result is
// that of the next one's left operand.
//
// The type of the products is the cache's where it has 16 bits, else q's; q is converted once, when it is loaded. Codes
// of 8 bits are exact in either type: K's are multiplied as they are and the scores scaled, V's are scaled and rounded
// when they are loaded (scaling the probabilities instead would push them below f16's range where values are small).
#include "ops/cuda/attention_parts.h"
#include "ops/cuda/kv_cache.cuh"
#include "ops/cuda/mma.cuh"

#include <algorithm>
#include <limits>

namespace nibble::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = 16 * kWarps;
constexpr int kStages = 2;
constexpr unsigned kAll = 0xffffffffu;

struct TilesParameters {
  const void* q = nullptr;
  void* y = nullptr;
  std::int64_t q_stride = 0;
  std::int64_t y_stride = 0;
  DType q_type = DType::f16;
  DType y_type = DType::f16;
  DType cache_type = DType::f16;
  bool q_vectors = false;  // q has the products' type and can be read 16 bytes at a time
  bool y_pairs = false;    // two elements of y can be written at once
  const std::int32_t* positions = nullptr;
  const std::int32_t* slots = nullptr;
  const std::int32_t* row_begin = nullptr;
  KvCache cache;
  std::int32_t sequences = 0;
  std::int32_t heads = 1;
  std::int32_t group = 1;
  std::int32_t window = 0;
  ScoreFactors factors;
};

template <typename T, int Width>
struct Shared {
  // 64 keys keep the copies of a tile long; for wide heads 32, because O and the scores are to fit in registers.
  static constexpr int kKeys = Width <= 128 ? 64 : 32;
  // Rows 16 bytes longer than an even number of 16-byte pieces: eight rows' pieces lie in different banks.
  static constexpr int kStride = Width + 8;

  T q[kRows][kStride];
  T k[kStages][kKeys][kStride];
  T v[kStages][kKeys][kStride];
  float k_scale[kStages][kKeys];
};

__device__ __forceinline__ void store_pair(void* data, std::int64_t index, DType dtype, float low, float high) {
  if (dtype == DType::f32) {
    float* const to = static_cast<float*>(data) + index;
    to[0] = low;
    to[1] = high;
  } else {
    const unsigned pair = dtype == DType::f16 ? pack(low, high, __half{}) : pack(low, high, __nv_bfloat16{});
    *reinterpret_cast<unsigned*>(static_cast<__half*>(data) + index) = pair;
  }
}

/// Rows [row, row + rows) of one sequence; rows 0: none.
struct RowTile {
  int row = 0;
  int rows = 0;
};

// The `index`-th tile, counted from the last tile of the last sequence: a sequence's last rows see the most keys, and
// the longest work is to start first. Found from row_begin, which the host does not see; the grid has a block for each
// tile that there can be. Every warp looks by itself, 32 sequences at a time.
__device__ __forceinline__ RowTile find_tile(const TilesParameters& p, int index) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int done = 0; done < p.sequences; done += 32) {
    const int sequence = p.sequences - 1 - done - lane;
    int begin = 0;
    int count = 0;
    int rows = 0;
    if (sequence >= 0) {
      begin = p.row_begin[sequence];
      rows = p.row_begin[sequence + 1] - begin;
      count = (rows + kRows - 1) / kRows;
    }
    int until = count;  // tiles of this lane's sequence and those of lanes before
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int before = __shfl_up_sync(kAll, until, offset);
      if (lane >= offset) until += before;
    }
    const unsigned beyond = __ballot_sync(kAll, until > index);
    if (beyond != 0) {
      const int owner = __ffs(static_cast<int>(beyond)) - 1;
      const int tile = __shfl_sync(kAll, until, owner) - 1 - index;  // counted from the sequence's first
      const int first = __shfl_sync(kAll, begin, owner) + tile * kRows;
      const int end = __shfl_sync(kAll, begin + rows, owner);
      return {first, min(kRows, end - first)};
    }
    index -= __shfl_sync(kAll, until, 31);
  }
  return {};
}

template <typename T, int Width>
class TileAttention {
  using Memory = Shared<T, Width>;
  static constexpr int kKeys = Memory::kKeys;
  static constexpr int kPieces = Width / 8;  // of 16 bytes in a row of 16-bit elements

 public:
  __device__ TileAttention(const TilesParameters& params, Memory& memory)
      : p_(params),
        m_(memory),
        tid_(static_cast<int>(threadIdx.x)),
        warp_(tid_ / 32),
        lane_(tid_ % 32),
        head_(static_cast<int>(blockIdx.x) % params.heads) {}

  __device__ void run() {
    tile_ = find_tile(p_, static_cast<int>(blockIdx.x) / p_.heads);
    if (tile_.rows == 0) return;
    const int first_position = p_.positions[tile_.row];
    last_position_ = p_.positions[tile_.row + tile_.rows - 1];
    const int slot = p_.slots[tile_.row];
    const int kv_head = head_ / p_.group;
    k_ = head_codes(p_.cache, p_.cache.k, slot, kv_head);
    v_ = head_codes(p_.cache, p_.cache.v, slot, kv_head);
    k_scales_ = head_scales(p_.cache, p_.cache.k, slot, kv_head);
    v_scales_ = head_scales(p_.cache, p_.cache.v, slot, kv_head);

    const int first_key = p_.window > 0 ? max(0, first_position - p_.window + 1) : 0;
    const int begin = first_key / kKeys;
    const int end = last_position_ / kKeys + 1;
    copy_keys(begin, 0);
    copies_end_group();
    load_q();

    // The rows of this thread's results, and those of its warp; rows that are not there get the last one's position.
    const int own_row = warp_ * 16 + lane_ / 4;
    own_[0] = position_of(own_row);
    own_[1] = position_of(own_row + 8);
    const int warp_first = position_of(warp_ * 16);
    const int warp_last = position_of(warp_ * 16 + 15);
    const bool warp_has_rows = warp_ * 16 < tile_.rows;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) out_[i][j] = 0;
    }

    for (int tile = begin; tile < end; ++tile) {
      const int stage = (tile - begin) % kStages;
      if (tile + 1 < end) copy_keys(tile + 1, (stage + 1) % kStages);
      copies_end_group();
      copies_wait<1>();
      __syncthreads();
      // Tiles that lie after all of a warp's rows, or before all of their windows, are nothing to it.
      const int key0 = tile * kKeys;
      const bool within = p_.window == 0 || key0 + kKeys - 1 > warp_first - p_.window;
      if (warp_has_rows && key0 <= warp_last && within) {
        const bool masked = key0 + kKeys - 1 > warp_first || (p_.window > 0 && key0 <= warp_last - p_.window);
        attend(stage, key0, masked);
      }
      __syncthreads();
    }
    write(own_row);
  }

 private:
  __device__ int position_of(int row) const {
    return row < tile_.rows ? p_.positions[tile_.row + row] : last_position_;
  }

  __device__ void load_q() {
    const int head_dim = p_.cache.head_dim;
    for (int i = tid_; i < kRows * kPieces; i += kThreads) {
      const int row = i / kPieces;
      const int d = i % kPieces * 8;
      uint4 piece = make_uint4(0, 0, 0, 0);
      if (row < tile_.rows && d < head_dim) {
        const std::int64_t at = (tile_.row + row) * p_.q_stride + static_cast<std::int64_t>(head_) * head_dim + d;
        if (p_.q_vectors) {
          piece = *reinterpret_cast<const uint4*>(static_cast<const T*>(p_.q) + at);
        } else {
          float x[8];
#pragma unroll
          for (int e = 0; e < 8; ++e) x[e] = d + e < head_dim ? load_as_float(p_.q, at + e, p_.q_type) : 0.0f;
          piece =
              make_uint4(pack(x[0], x[1], T{}), pack(x[2], x[3], T{}), pack(x[4], x[5], T{}), pack(x[6], x[7], T{}));
        }
      }
      *reinterpret_cast<uint4*>(&m_.q[row][d]) = piece;
    }
  }

  // A tile of K and V into shared memory, zeros for keys and elements that are not there.
  __device__ void copy_keys(int tile, int stage) {
    if (p_.cache_type == DType::i8) {
      convert_keys<std::int8_t>(tile, stage);
    } else if (p_.cache_type == DType::f8_e4m3) {
      convert_keys<__nv_fp8_e4m3>(tile, stage);
    } else {
      const int vectors = p_.cache.row_bytes / 16;
      static_assert(kKeys * kPieces % kThreads == 0);
      // Not unrolled: addresses would take registers that results need.
#pragma unroll 1
      for (int n = 0; n < kKeys * kPieces / kThreads; ++n) {
        const int i = tid_ + n * kThreads;
        const int row = i / kPieces;
        const int piece = i % kPieces;
        const int key = tile * kKeys + row;
        const bool wanted = key <= last_position_ && piece < vectors;
        const int from = wanted ? key * p_.cache.row_bytes + piece * 16 : 0;
        copy_16(&m_.k[stage][row][piece * 8], k_ + from, wanted);
        copy_16(&m_.v[stage][row][piece * 8], v_ + from, wanted);
      }
    }
  }

  template <typename Code>
  __device__ void convert_keys(int tile, int stage) {
    const int vectors = p_.cache.row_bytes / 16;
    for (int i = tid_; i < kKeys * (kPieces / 2); i += kThreads) {
      const int row = i / (kPieces / 2);
      const int vector = i % (kPieces / 2);
      const int key = tile * kKeys + row;
      uint4 k = make_uint4(0, 0, 0, 0);
      uint4 v = make_uint4(0, 0, 0, 0);
      float v_scale = 0;
      if (key <= last_position_ && vector < vectors) {
        const int from = key * p_.cache.row_bytes + vector * 16;
        k = *reinterpret_cast<const uint4*>(k_ + from);
        v = *reinterpret_cast<const uint4*>(v_ + from);
        v_scale = v_scales_[key];
      }
      convert(k, 1.0f, &m_.k[stage][row][vector * 16], Code{});
      convert(v, v_scale, &m_.v[stage][row][vector * 16], Code{});
    }
    if (tid_ < kKeys) {
      const int key = tile * kKeys + tid_;
      m_.k_scale[stage][tid_] = key <= last_position_ ? k_scales_[key] : 0.0f;
    }
  }

  template <typename Code>
  __device__ static void convert(const uint4& codes, float scale, T* to, Code type) {
    float x[16];
    decode_vector(codes, x, type);
    unsigned words[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) words[i] = pack(x[2 * i] * scale, x[2 * i + 1] * scale, T{});
    uint4* const pieces = reinterpret_cast<uint4*>(to);
    pieces[0] = make_uint4(words[0], words[1], words[2], words[3]);
    pieces[1] = make_uint4(words[4], words[5], words[6], words[7]);
  }

  // The warp's 16 rows against the tile's keys.
  __device__ void attend(int stage, int key0, bool masked) {
    float scores[kKeys / 8][4];
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) scores[n][j] = 0;
    }
    // Of the four 8x8 matrices that one load brings, a lane names a row: for Q (rows 0-7, 8-15) x (k 0-7, 8-15), rows
    // first; for K (two tiles of keys) x (k 0-7, 8-15), k first; for V, transposed, (keys 0-7, 8-15) x two tiles of
    // dimensions, keys first.
    const int low_row = lane_ % 8 + (lane_ / 8 % 2) * 8;
    const int low_piece = lane_ / 16 * 8;
    const int high_row = lane_ % 8 + lane_ / 16 * 8;
    const int high_piece = (lane_ / 8 % 2) * 8;
#pragma unroll
    for (int d = 0; d < Width; d += 16) {
      unsigned q[4];
      load_matrices(q, &m_.q[warp_ * 16 + low_row][d + low_piece]);
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        unsigned k[4];
        load_matrices(k, &m_.k[stage][n * 16 + high_row][d + high_piece]);
        multiply(scores[2 * n], q, k[0], k[1], T{});
        multiply(scores[2 * n + 1], q, k[2], k[3], T{});
      }
    }

    if (p_.cache_type == DType::i8 || p_.cache_type == DType::f8_e4m3) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        const float* const scale = &m_.k_scale[stage][n * 8 + lane_ % 4 * 2];
        scores[n][0] *= scale[0];
        scores[n][1] *= scale[1];
        scores[n][2] *= scale[0];
        scores[n][3] *= scale[1];
      }
    }
    if (p_.factors.capped) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) scores[n][j] = hyperbolic_tangent(scores[n][j] * p_.factors.before);
      }
    }
    if (masked) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int key = key0 + n * 8 + lane_ % 4 * 2 + j % 2;
          const int row = own_[j / 2];
          if (key > row || (p_.window > 0 && key <= row - p_.window)) scores[n][j] = -INFINITY;
        }
      }
    }

    // Scores become probabilities, relative to the largest score so far.
    float offset[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = -INFINITY;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      // The four lanes of a row lie side by side.
      largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, 2));
      largest = fmaxf(largest_[half], largest * p_.factors.after);
      offset[half] = as_offset(largest);
      const float fade = exp2_fast(largest_[half] - offset[half]);
      largest_[half] = largest;
      total_[half] *= fade;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        out_[i][2 * half] *= fade;
        out_[i][2 * half + 1] *= fade;
      }
    }
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        scores[n][j] = exp2_fast(fmaf(scores[n][j], p_.factors.after, -offset[j / 2]));
        total_[j / 2] += scores[n][j];
      }
    }

#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      const float(&low)[4] = scores[2 * n];
      const float(&high)[4] = scores[2 * n + 1];
      const unsigned weights[4] = {pack(low[0], low[1], T{}), pack(low[2], low[3], T{}), pack(high[0], high[1], T{}),
                                   pack(high[2], high[3], T{})};
#pragma unroll
      for (int d = 0; d < Width; d += 16) {
        unsigned v[4];
        load_matrices_transposed(v, &m_.v[stage][n * 16 + low_row][d + low_piece]);
        multiply(out_[d / 8], weights, v[0], v[1], T{});
        multiply(out_[d / 8 + 1], weights, v[2], v[3], T{});
      }
    }
  }

  // 1 - 2 / (e^2x + 1), good to some 1e-7, at a fraction of tanhf's cost.
  __device__ static float hyperbolic_tangent(float x) {
    constexpr float kTwoLog2e = 2.885390082f;
    return 1.0f - __fdividef(2.0f, exp2_fast(fminf(x * kTwoLog2e, 64.0f)) + 1.0f);
  }

  __device__ void write(int own_row) {
    const int head_dim = p_.cache.head_dim;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = total_[half];
      total += __shfl_xor_sync(kAll, total, 1);
      total += __shfl_xor_sync(kAll, total, 2);
      const int row = own_row + 8 * half;
      if (row >= tile_.rows) continue;
      const float inverse = 1.0f / total;
      const std::int64_t start = (tile_.row + row) * p_.y_stride + static_cast<std::int64_t>(head_) * head_dim;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int d = i * 8 + lane_ % 4 * 2;  // even as head_dim is, so that both elements are there or neither
        if (d >= head_dim) continue;
        const float low = out_[i][2 * half] * inverse;
        const float high = out_[i][2 * half + 1] * inverse;
        if (p_.y_pairs) {
          store_pair(p_.y, start + d, p_.y_type, low, high);
        } else {
          store_float(p_.y, start + d, p_.y_type, low);
          store_float(p_.y, start + d + 1, p_.y_type, high);
        }
      }
    }
  }

  const TilesParameters& p_;
  Memory& m_;
  const int tid_, warp_, lane_, head_;
  RowTile tile_;
  int last_position_;
  int own_[2];
  std::byte* k_;
  std::byte* v_;
  const float* k_scales_;
  const float* v_scales_;
  float out_[kPieces][4];
  float largest_[2] = {-INFINITY, -INFINITY};
  float total_[2] = {0, 0};
};

// Two blocks share a multiprocessor where 128 registers a thread are enough.
template <int Width>
inline constexpr int kBlocks = Width <= 128 ? 2 : 1;

template <typename T, int Width>
__global__ void __launch_bounds__(kThreads, kBlocks<Width>) tiles_kernel(const __grid_constant__ TilesParameters p) {
  extern __shared__ uint4 shared[];
  pdl_wait();
  pdl_launch();
  TileAttention<T, Width>(p, *reinterpret_cast<Shared<T, Width>*>(shared)).run();
}

template <typename T, int Width>
void launch_tiles(const TilesParameters& p, std::int64_t rows, CudaStream& stream) {
  constexpr auto kKernel = tiles_kernel<T, Width>;
  constexpr std::size_t kBytes = sizeof(Shared<T, Width>);
  allow_shared_memory<kKernel>(kBytes);
  // Each sequence can leave one tile unfilled. Heads go fastest, so that those that share keys run together.
  const std::int64_t tiles = rows / kRows + p.sequences;
  launch(stream, dim3(static_cast<unsigned>(tiles * p.heads)), dim3(kThreads), kBytes, Overlap::yes, kKernel, p);
}

template <typename T>
void launch_type(const TilesParameters& p, std::int64_t rows, CudaStream& stream) {
  const int width = p.cache.head_dim;
  if (width <= 64) return launch_tiles<T, 64>(p, rows, stream);
  if (width <= 96) return launch_tiles<T, 96>(p, rows, stream);
  if (width <= 128) return launch_tiles<T, 128>(p, rows, stream);
  launch_tiles<T, 256>(p, rows, stream);
}

bool aligned(const MatrixRef& x, std::int64_t bytes) {
  const std::int64_t elements = bytes / static_cast<std::int64_t>(bytes_of(x.dtype));
  return reinterpret_cast<std::uintptr_t>(x.data) % static_cast<std::uintptr_t>(bytes) == 0 && x.stride % elements == 0;
}

}  // namespace

void attend_tiles(const AttentionArgs& args, CudaStream& stream) {
  if (args.map.rows == 0) return;
  const DType type = has_scales(args.cache.dtype) ? args.q.dtype : args.cache.dtype;
  TilesParameters p;
  p.q = args.q.data;
  p.q_stride = args.q.stride;
  p.q_type = args.q.dtype;
  p.y = args.y.data;
  p.y_stride = args.y.stride;
  p.y_type = args.y.dtype;
  p.cache_type = args.cache.dtype;
  p.q_vectors = args.q.dtype == type && args.cache.head_dim % 8 == 0 && aligned(args.q, 16);
  p.y_pairs = args.y.dtype == DType::f32 || aligned(args.y, 4);
  p.positions = args.map.positions;
  p.slots = args.map.slots;
  p.row_begin = args.map.row_begin;
  p.cache = kv_cache(args.cache);
  p.sequences = static_cast<std::int32_t>(args.map.sequences);
  p.heads = static_cast<std::int32_t>(args.heads);
  p.group = static_cast<std::int32_t>(args.heads / args.cache.kv_heads);
  p.window = static_cast<std::int32_t>(std::min<std::int64_t>(args.window, std::numeric_limits<std::int32_t>::max()));
  p.factors = score_factors(args);
  if (type == DType::f16) {
    launch_type<__half>(p, args.map.rows, stream);
  } else {
    launch_type<__nv_bfloat16>(p, args.map.rows, stream);
  }
}

}  // namespace nibble::cuda
