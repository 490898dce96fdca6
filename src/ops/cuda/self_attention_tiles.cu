// Attention of the rows of a sequence to one another on tensor cores (mma.sync m16n8k16, f32 sums): a block takes 64 or
// 128 rows of one sequence and one head, each warp 16 of them, and walks through the keys in tiles, the next tile's
// copies running while one is multiplied. Scores stay in registers, relative to the largest so far (online softmax,
// Milakov and Gimelshein 2018; tiled as by Dao 2022): no matrix of scores is written.
#include "ops/cuda/kv_cache.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/row_tiles.cuh"
#include "ops/cuda/self_attention_parts.h"

#include <algorithm>
#include <numbers>

namespace nibble::cuda {
namespace {

constexpr int kStages = 2;
constexpr unsigned kAll = 0xffffffffu;
constexpr float kLog2e = std::numbers::log2e_v<float>;

struct Parameters {
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  void* y = nullptr;
  std::int64_t q_stride = 0, k_stride = 0, v_stride = 0, y_stride = 0;
  const std::int32_t* row_begin = nullptr;
  const std::int32_t* valid = nullptr;
  const float* bias = nullptr;
  int bias_reach = 0;
  int sequences = 0;
  int heads = 1;
  int head_dim = 0;
  float scale = 1;  // of scores in base 2
  bool causal = false;
  bool vectors = false;  // all matrices can be read and written 16 bytes at a time
};

template <typename T, int Width, int kWarps>
struct Shared {
  static constexpr int kKeys = Width <= 128 ? 64 : 32;
  // Rows 16 bytes longer than an even number of 16-byte pieces: eight rows' pieces lie in different banks.
  static constexpr int kStride = Width + 8;
  T q[16 * kWarps][kStride];
  T k[kStages][kKeys][kStride];
  T v[kStages][kKeys][kStride];
};

template <typename T, int Width, int kWarps>
class SelfAttention {
  using Memory = Shared<T, Width, kWarps>;
  static constexpr int kKeys = Memory::kKeys;
  static constexpr int kPieces = Width / 8;  // of 16 bytes in a row
  static constexpr int kRows = 16 * kWarps;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr bool kKeepsQ = Width <= 64;  // in registers

 public:
  __device__ SelfAttention(const Parameters& params, Memory& memory)
      : p_(params),
        m_(memory),
        tid_(static_cast<int>(threadIdx.x)),
        warp_(tid_ / 32),
        lane_(tid_ % 32),
        head_(static_cast<int>(blockIdx.x) % params.heads) {}

  __device__ void run() {
    tile_ = find_sequence_tile<kRows>(p_.row_begin, p_.sequences, static_cast<int>(blockIdx.x) / p_.heads);
    if (tile_.rows == 0) return;
    const int first = tile_.row - tile_.begin;  // in the sequence
    keys_ = tile_.length;
    if (p_.valid != nullptr) keys_ = min(keys_, p_.valid[tile_.sequence]);
    const int seen = p_.causal ? min(keys_, first + tile_.rows) : keys_;
    const int tiles = (seen + kKeys - 1) / kKeys;
    load_q();
    if (tiles > 0) copy_keys(0, 0);
    copies_end_group();

    const int own_row = warp_ * 16 + lane_ / 4;
    own_[0] = first + own_row;
    own_[1] = own_[0] + 8;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) out_[i][j] = 0;
    }
    unsigned q[kKeepsQ ? Width / 16 : 1][4];
    for (int tile = 0; tile < tiles; ++tile) {
      const int stage = tile % kStages;
      if (tile + 1 < tiles) copy_keys(tile + 1, (stage + 1) % kStages);
      copies_end_group();
      copies_wait<1>();
      __syncthreads();
      if constexpr (kKeepsQ) {
        if (tile == 0) {
#pragma unroll
          for (int d = 0; d < Width; d += 16) load_matrices(q[d / 16], q_at(d));
        }
      }
      const int key0 = tile * kKeys;
      const bool masked = key0 + kKeys > keys_ || (p_.causal && key0 + kKeys - 1 > first + warp_ * 16);
      // Keys after all of a warp's rows are nothing to it.
      if (warp_ * 16 < tile_.rows && !(p_.causal && key0 > first + warp_ * 16 + 15)) attend(stage, key0, masked, q);
      __syncthreads();
    }
    if (tiles == 0) {
      // Nothing has waited for the copies of q, in whose place results are put.
      copies_wait<0>();
      __syncthreads();
    }
    write(own_row);
  }

 private:
  __device__ const T* q_at(int d) const {
    return &m_.q[warp_ * 16 + lane_ % 8 + (lane_ / 8 % 2) * 8][d + lane_ / 16 * 8];
  }

  // Eight elements of a row that cannot be read at once, zeros behind the head.
  __device__ uint4 gather(const T* from, int d) const {
    T eight[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) eight[e] = d + e < p_.head_dim ? from[d + e] : from_float<T>(0.0f);
    uint4 piece;
    memcpy(&piece, eight, sizeof piece);
    return piece;
  }

  __device__ void load_row(T* to, const T* from, int d, bool wanted) const {
    if (p_.vectors) {
      wanted = wanted && d < p_.head_dim;
      copy_16(to, wanted ? from + d : from, wanted);
    } else {
      *reinterpret_cast<uint4*>(to) = wanted ? gather(from, d) : make_uint4(0, 0, 0, 0);
    }
  }

  __device__ void load_q() {
    const T* const q = static_cast<const T*>(p_.q) + static_cast<std::int64_t>(head_) * p_.head_dim;
    for (int i = tid_; i < kRows * kPieces; i += kThreads) {
      const int row = i / kPieces;
      const int d = i % kPieces * 8;
      const bool wanted = row < tile_.rows;
      load_row(&m_.q[row][d], q + (tile_.row + (wanted ? row : 0)) * p_.q_stride, d, wanted);
    }
  }

  // A tile of K and V into shared memory, zeros for keys and elements that are not there.
  __device__ void copy_keys(int tile, int stage) {
    const std::int64_t head = static_cast<std::int64_t>(head_) * p_.head_dim;
    const T* const k = static_cast<const T*>(p_.k) + head;
    const T* const v = static_cast<const T*>(p_.v) + head;
#pragma unroll 1
    for (int i = tid_; i < kKeys * kPieces; i += kThreads) {
      const int row = i / kPieces;
      const int d = i % kPieces * 8;
      const int key = tile * kKeys + row;
      const bool wanted = key < keys_;
      const std::int64_t from = tile_.begin + (wanted ? key : 0);
      load_row(&m_.k[stage][row][d], k + from * p_.k_stride, d, wanted);
      load_row(&m_.v[stage][row][d], v + from * p_.v_stride, d, wanted);
    }
  }

  // The warp's 16 rows against the tile's keys.
  __device__ __forceinline__ void attend(int stage, int key0, bool masked,
                                         const unsigned (&kept)[kKeepsQ ? Width / 16 : 1][4]) {
    float scores[kKeys / 8][4];
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) scores[n][j] = 0;
    }
    // Of the four 8x8 matrices that one load brings, a lane names a row: for K (two tiles of keys) x (k 0-7, 8-15), k
    // first; for V, transposed, (keys 0-7, 8-15) x two tiles of dimensions, keys first.
    const int low_row = lane_ % 8 + (lane_ / 8 % 2) * 8;
    const int low_piece = lane_ / 16 * 8;
    const int high_row = lane_ % 8 + lane_ / 16 * 8;
    const int high_piece = (lane_ / 8 % 2) * 8;
#pragma unroll
    for (int d = 0; d < Width; d += 16) {
      unsigned q[4];
      if constexpr (kKeepsQ) {
#pragma unroll
        for (int i = 0; i < 4; ++i) q[i] = kept[d / 16][i];
      } else {
        load_matrices(q, q_at(d));
      }
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        unsigned k[4];
        load_matrices(k, &m_.k[stage][n * 16 + high_row][d + high_piece]);
        multiply(scores[2 * n], q, k[0], k[1], T{});
        multiply(scores[2 * n + 1], q, k[2], k[3], T{});
      }
    }
    // Without a bias, scores are scaled when their powers are taken.
    const float factor = p_.bias == nullptr ? p_.scale : 1.0f;
    if (p_.bias != nullptr) {
      const float* const bias = p_.bias + static_cast<std::int64_t>(head_) * (2 * p_.bias_reach + 1) + p_.bias_reach;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int distance = key0 + n * 8 + lane_ % 4 * 2 + j % 2 - own_[j / 2];
          const float added = bias[max(-p_.bias_reach, min(p_.bias_reach, distance))];
          scores[n][j] = fmaf(scores[n][j], p_.scale, added * kLog2e);
        }
      }
    }
    if (masked) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int key = key0 + n * 8 + lane_ % 4 * 2 + j % 2;
          if (key >= keys_ || (p_.causal && key > own_[j / 2])) scores[n][j] = -INFINITY;
        }
      }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = largest_[half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      // The four lanes of a row lie side by side.
      largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, 2));
      const float offset = largest == -INFINITY ? 0.0f : largest;  // nothing seen yet: exp2 of -inf is 0
      const float shrink = exp2_fast((largest_[half] - offset) * factor);
      largest_[half] = largest;
      float total = total_[half] * shrink;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int j = 2 * half; j < 2 * half + 2; ++j) {
          scores[n][j] = exp2_fast(fmaf(scores[n][j], factor, -offset * factor));
          total += scores[n][j];
        }
      }
      total_[half] = total;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        out_[i][2 * half] *= shrink;
        out_[i][2 * half + 1] *= shrink;
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

  // A warp's results go through its own rows of q, so that whole lines are written.
  __device__ void write(int own_row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = total_[half];
      total += __shfl_xor_sync(kAll, total, 1);
      total += __shfl_xor_sync(kAll, total, 2);
      const float inverse = total > 0 ? 1.0f / total : 0.0f;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        *reinterpret_cast<unsigned*>(&m_.q[own_row + 8 * half][i * 8 + lane_ % 4 * 2]) =
            pack(out_[i][2 * half] * inverse, out_[i][2 * half + 1] * inverse, T{});
      }
    }
    __syncwarp();
    T* const y = static_cast<T*>(p_.y) + static_cast<std::int64_t>(head_) * p_.head_dim;
#pragma unroll 1
    for (int i = lane_; i < 16 * kPieces; i += 32) {
      const int row = warp_ * 16 + i / kPieces;
      const int d = i % kPieces * 8;
      if (row >= tile_.rows || d >= p_.head_dim) continue;
      T* const to = y + (tile_.row + row) * p_.y_stride + d;
      if (p_.vectors) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(&m_.q[row][d]);
      } else {
        for (int e = 0; e < 8 && d + e < p_.head_dim; ++e) to[e] = m_.q[row][d + e];
      }
    }
  }

  const Parameters& p_;
  Memory& m_;
  const int tid_, warp_, lane_, head_;
  SequenceTile tile_;
  int keys_ = 0;
  int own_[2];
  float out_[kPieces][4];
  float largest_[2] = {-INFINITY, -INFINITY};
  float total_[2] = {0, 0};
};

template <typename T, int Width, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, Width <= 96 ? 16 / kWarps : 1)
    self_tiles_kernel(const __grid_constant__ Parameters p) {
  extern __shared__ uint4 shared[];
  pdl_wait();
  pdl_launch();
  SelfAttention<T, Width, kWarps>(p, *reinterpret_cast<Shared<T, Width, kWarps>*>(shared)).run();
}

template <typename T, int Width, int kWarps>
void launch_self_tiles(const Parameters& p, std::int64_t rows, CudaStream& stream) {
  constexpr auto kKernel = self_tiles_kernel<T, Width, kWarps>;
  constexpr std::size_t kBytes = sizeof(Shared<T, Width, kWarps>);
  allow_shared_memory<kKernel>(kBytes);
  // Each sequence can leave one tile unfilled. Heads go fastest, so that rows of activations are read together.
  const std::int64_t tiles = rows / (16 * kWarps) + p.sequences;
  launch(stream, dim3(static_cast<unsigned>(tiles * p.heads)), dim3(32 * kWarps), kBytes, Overlap::yes, kKernel, p);
}

template <typename T, int Width>
void launch_width(const Parameters& p, std::int64_t rows, int multiprocessors, CudaStream& stream) {
  // Tiles of 128 rows read keys half as often; tiles of 64 keep more multiprocessors busy where there are few.
  constexpr std::int64_t kRows = 128;
  const std::int64_t large = rows / kRows * p.heads;
  if constexpr (Width <= 128) {
    if (large < 2 * static_cast<std::int64_t>(multiprocessors) || rows <= 64 * static_cast<std::int64_t>(p.sequences))
      return launch_self_tiles<T, Width, 4>(p, rows, stream);
  }
  launch_self_tiles<T, Width, 8>(p, rows, stream);
}

template <typename T>
void launch_type(const Parameters& p, std::int64_t rows, int multiprocessors, CudaStream& stream) {
  if (p.head_dim <= 32) return launch_width<T, 32>(p, rows, multiprocessors, stream);
  if (p.head_dim <= 64) return launch_width<T, 64>(p, rows, multiprocessors, stream);
  if (p.head_dim <= 96) return launch_width<T, 96>(p, rows, multiprocessors, stream);
  if (p.head_dim <= 128) return launch_width<T, 128>(p, rows, multiprocessors, stream);
  launch_width<T, 256>(p, rows, multiprocessors, stream);
}

bool aligned(const MatrixRef& x) { return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && x.stride % 8 == 0; }

}  // namespace

void self_attend_tiles(const SelfAttentionArgs& args, const CudaDevice& device, CudaStream& stream) {
  Parameters p;
  p.q = args.q.data;
  p.k = args.k.data;
  p.v = args.v.data;
  p.y = args.y.data;
  p.q_stride = args.q.stride;
  p.k_stride = args.k.stride;
  p.v_stride = args.v.stride;
  p.y_stride = args.y.stride;
  p.row_begin = args.map.row_begin;
  p.valid = args.valid;
  p.bias = args.bias;
  p.bias_reach = static_cast<int>(args.bias_reach);
  p.sequences = static_cast<int>(args.map.sequences);
  p.heads = static_cast<int>(args.heads);
  p.head_dim = static_cast<int>(args.q.columns / args.heads);
  p.scale = args.scale * kLog2e;
  p.causal = args.causal;
  p.vectors = p.head_dim % 8 == 0 && aligned(args.q) && aligned(args.k) && aligned(args.v) && aligned(args.y);
  if (args.q.dtype == DType::f16) {
    launch_type<__half>(p, args.map.rows, device.multiprocessors(), stream);
  } else {
    launch_type<__nv_bfloat16>(p, args.map.rows, device.multiprocessors(), stream);
  }
}

}  // namespace nibble::cuda
