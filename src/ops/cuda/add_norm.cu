// The norm of a sum, as encoders have it between their blocks: one pass that reads both addends, and may keep the sum;
// and in the same way that of one matrix. A row is normed by a warp where its elements fit into a few registers of each
// lane, else by a block; mean and variance are taken in turn from the registers, in f32 and in a fixed order, of the
// sum before it is rounded. Few rows leave a multiprocessor time to wait, so weight and bias are read ahead of them; of
// many rows as many as possible are to be under way, so that each has only the registers of its sum; and they are taken
// from the last to the first: the product ahead wrote the last ones last, and of many rows only those are still in the
// second cache.
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/elements.cuh"
#include "ops/cuda/op_checks.h"

namespace nibble::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 4;
constexpr int kBlock = 256;
constexpr int kMostAccesses = 4;           // of a lane, eight elements each
constexpr std::int64_t kMostOfFew = 2048;  // rows: four blocks or less on each of 132 multiprocessors
constexpr int kBlocksOfMany = 8;           // on a multiprocessor, of many rows: 64 registers a thread
// Rows between which products whose blocks have a multiprocessor each stand around a norm and take a multiprocessor's
// memory as shared memory: passes of an encoder of 387 to 475 rows are then 1 to 2% shorter, of fewer as much longer.
constexpr std::int64_t kLeastOfShared = 257;
constexpr std::int64_t kMostOfShared = 640;

struct Shape {
  std::int64_t rows;
  std::int64_t width;
  int parts;  // that a is the sum of; 0: none
  float eps;
  bool rms;
  bool keeps;  // the sum
};

template <typename T>
struct Matrices {
  Rows<const T> a;
  Rows<const T> b;  // no data: zeros
  Rows<T> sum;
  Rows<T> y;
  const float* parts;  // [kParts, rows, width] instead of a
};

__device__ __forceinline__ float over_block(float value) {
  __shared__ float parts[kBlock / kWarp];
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  float out = 0;
#pragma unroll
  for (int i = 0; i < kBlock / kWarp; ++i) out += parts[i];
  return out;
}

// What a lane has of weight and bias: those of its access i.
struct Scale {
  float weight[kVector];
  float bias[kVector];

  __device__ __forceinline__ void read(const float* from_weight, const float* from_bias, int at, std::int64_t width) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      weight[e] = 1;
      bias[e] = 0;
    }
    if (from_weight != nullptr && at < width) load(from_weight + at, weight);
    if (from_bias != nullptr && at < width) load(from_bias + at, bias);
  }
};

// kAccesses times 256 elements or less. All parts of a are on their way before the first is added.
template <int kAccesses, bool kMany, int kParts, typename T>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, kMany ? kBlocksOfMany : 1)
    add_norm_warp(Matrices<T> m, const float* weight, const float* bias, Shape s) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const unsigned block = kMany ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  const std::int64_t row = static_cast<std::int64_t>(block) * kWarpsPerBlock + threadIdx.x / kWarp;
  // Weight and bias are constant: they may come while the kernel before this one still runs.
  Scale scales[kMany ? 1 : kAccesses];
  if constexpr (!kMany) {
#pragma unroll
    for (int i = 0; i < kAccesses; ++i) scales[i].read(weight, bias, (i * kWarp + lane) * kVector, s.width);
  }
  pdl_wait();
  pdl_launch();
  if (row >= s.rows) return;
  float x[kAccesses][kVector];
#pragma unroll
  for (int i = 0; i < kAccesses; ++i) {
    const int at = (i * kWarp + lane) * kVector;
    float other[kVector] = {};
#pragma unroll
    for (float& value : x[i]) value = 0;
    if (at < s.width) {
      if constexpr (kParts > 0) {
        float own[kParts][kVector];
#pragma unroll
        for (int part = 0; part < kParts; ++part) load(m.parts + (part * s.rows + row) * s.width + at, own[part]);
#pragma unroll
        for (const auto& one : own) {
#pragma unroll
          for (int e = 0; e < kVector; ++e) x[i][e] += one[e];
        }
      } else {
        load(m.a.row(row) + at, x[i]);
      }
      if (m.b.data != nullptr) load(m.b.row(row) + at, other);
    }
#pragma unroll
    for (int e = 0; e < kVector; ++e) x[i][e] += other[e];
    if (s.keeps && at < s.width) store(m.sum.row(row) + at, x[i]);
  }
  const float per = 1.0f / static_cast<float>(s.width);
  float mean = 0;
  if (!s.rms) {
#pragma unroll
    for (int i = 0; i < kAccesses; ++i) {
#pragma unroll
      for (int e = 0; e < kVector; ++e) mean += x[i][e];
    }
    mean = warp_sum(mean) * per;
  }
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kAccesses; ++i) {
    if ((i * kWarp + lane) * kVector >= s.width) continue;
#pragma unroll
    for (int e = 0; e < kVector; ++e) squares += (x[i][e] - mean) * (x[i][e] - mean);
  }
  const float factor = rsqrtf(warp_sum(squares) * per + s.eps);
#pragma unroll
  for (int i = 0; i < kAccesses; ++i) {
    const int at = (i * kWarp + lane) * kVector;
    if (at >= s.width) continue;
    if constexpr (kMany) scales[0].read(weight, bias, at, s.width);
    const Scale& scale = scales[kMany ? 0 : i];
#pragma unroll
    for (int e = 0; e < kVector; ++e) x[i][e] = fmaf((x[i][e] - mean) * factor, scale.weight[e], scale.bias[e]);
    store(m.y.row(row) + at, x[i]);
  }
}

// Any width and alignment: the sum is read again for each of the three passes, from the cache.
template <typename T>
__global__ void __launch_bounds__(kBlock)
    add_norm_block(Matrices<T> m, const float* weight, const float* bias, Shape s) {
  pdl_wait();
  pdl_launch();
  const std::int64_t row = blockIdx.x;
  const auto sum = [&](std::int64_t i) {
    float a = 0;
    for (int part = 0; part < s.parts; ++part) a += m.parts[(part * s.rows + row) * s.width + i];
    if (s.parts == 0) a = to_float(m.a.row(row)[i]);
    return a + (m.b.data != nullptr ? to_float(m.b.row(row)[i]) : 0.0f);
  };
  const float per = 1.0f / static_cast<float>(s.width);
  float mean = 0;
  if (!s.rms) {
    for (std::int64_t i = threadIdx.x; i < s.width; i += kBlock) mean += sum(i);
    mean = over_block(mean) * per;
  }
  float squares = 0;
  for (std::int64_t i = threadIdx.x; i < s.width; i += kBlock) squares += (sum(i) - mean) * (sum(i) - mean);
  const float factor = rsqrtf(over_block(squares) * per + s.eps);
  for (std::int64_t i = threadIdx.x; i < s.width; i += kBlock) {
    // Both outputs may be an addend's memory: each element is read before it is written, by the same thread.
    const float value = sum(i);
    const float w = weight != nullptr ? weight[i] : 1.0f;
    const float c = bias != nullptr ? bias[i] : 0.0f;
    if (s.keeps) m.sum.row(row)[i] = from_float<T>(value);
    m.y.row(row)[i] = from_float<T>(fmaf((value - mean) * factor, w, c));
  }
}

}  // namespace

void add_norm(const NormArgs& args, CudaStream& stream) {
  const std::int64_t rows = args.x.rows;
  const std::int64_t width = args.x.columns;
  check_activation(args.x, "norm of a sum", "x");
  const bool adds = args.addend.data != nullptr;
  if (adds) check_shape(args.addend, rows, width, "norm of a sum", "the addend");
  check_shape(args.y, rows, width, "norm of a sum", "y");
  const bool keeps = args.sum.data != nullptr;
  if (keeps) check_shape(args.sum, rows, width, "norm of a sum", "the sum");
  if (args.groups != 1) fail("norm of a sum: {} groups; expected 1", args.groups);
  if ((adds && args.addend.dtype != args.x.dtype) || args.y.dtype != args.x.dtype ||
      (keeps && args.sum.dtype != args.x.dtype)) {
    fail("norm of a sum: addends, sum and y should be of one type, not {}, {} and {}", name_of(args.x.dtype),
         name_of(args.addend.dtype), name_of(args.y.dtype));
  }
  const bool in_parts = args.x_parts != nullptr;
  if (in_parts && (!adds || args.parts < 2 || args.parts > kMostSumParts)) {
    fail("norm of a sum: {} parts {} an addend; expected 2 to {} with one", args.parts, adds ? "with" : "without",
         kMostSumParts);
  }
  if (rows == 0 || width == 0) return;
  const Shape shape{rows, width, in_parts ? args.parts : 0, args.eps, args.kind == NormKind::rms, keeps};
  const MatrixRef& sum = keeps ? args.sum : args.y;
  const bool vectors = takes_vectors(args.x) && (!adds || takes_vectors(args.addend)) && takes_vectors(args.y) &&
                       takes_vectors(sum) && takes_vectors(args.weight) && takes_vectors(args.bias) &&
                       takes_vectors(args.x_parts);
  with_type(args.x.dtype, "x", [&](auto type) {
    using T = decltype(type);
    const Matrices<T> m{Rows<const T>(args.x), Rows<const T>(args.addend), Rows<T>(sum), Rows<T>(args.y), args.x_parts};
    const auto by_warp = [&](auto accesses) {
      constexpr int kAccesses = decltype(accesses)::value;
      const std::int64_t blocks = (rows + kWarpsPerBlock - 1) / kWarpsPerBlock;
      auto kernel = rows > kMostOfFew ? add_norm_warp<kAccesses, true, 0, T>  //
                                      : add_norm_warp<kAccesses, false, 0, T>;
      static_assert(kMostSumParts == 4);
      if (in_parts) {
        kernel = args.parts == 2   ? add_norm_warp<kAccesses, false, 2, T>
                 : args.parts == 3 ? add_norm_warp<kAccesses, false, 3, T>
                                   : add_norm_warp<kAccesses, false, 4, T>;
      }
      const Share share = rows >= kLeastOfShared && rows <= kMostOfShared ? Share::most : Share::as_needed;
      launch(stream, dim3(static_cast<unsigned>(blocks)), dim3(kWarp * kWarpsPerBlock), 0, Overlap::yes, share, 1,
             kernel, m, args.weight, args.bias, shape);
    };
    constexpr std::int64_t kOfAccess = kWarp * kVector;
    if (vectors && width <= 2 * kOfAccess) {
      by_warp(std::integral_constant<int, 2>{});
    } else if (vectors && width <= 3 * kOfAccess) {
      by_warp(std::integral_constant<int, 3>{});
    } else if (vectors && width <= kMostAccesses * kOfAccess) {
      by_warp(std::integral_constant<int, kMostAccesses>{});
    } else {
      launch(stream, dim3(static_cast<unsigned>(rows)), dim3(kBlock), 0, Overlap::yes, add_norm_block<T>, m,
             args.weight, args.bias, shape);
    }
  });
}

}  // namespace nibble::cuda
