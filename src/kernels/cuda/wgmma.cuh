// The tensor core instruction of a warpgroup (compute capability 9.0a), operands in shared memory with 128-byte
// swizzle: sums[64, N] += x[64, 16] * w[N, 16]^T in 16-bit types. A thread's sums lie as the PTX manual's figure of
// D has them: sums[4 j + 2 h + e] is row 16 * warp + lane / 4 + 8 h, column 8 j + lane % 4 * 2 + e.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace nibble {

/// Describes rows of 128 bytes (64 elements), eight of which make a swizzled block of 1024 bytes; `address` is one in
/// shared memory. 16 elements further along a row: 2 more.
__device__ __forceinline__ std::uint64_t wgmma_operand(std::uint32_t address) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kBlockStride = std::uint64_t{1024 / 16} << 32;
  constexpr std::uint64_t kUnused = std::uint64_t{1} << 16;
  return kSwizzle128 | kBlockStride | kUnused | ((address & 0x3ffff) / 16);
}

__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most kPending groups of products are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// clang-format off
#define NIBBLE_FOUR(a, i) "+f"(a[i]), "+f"(a[i + 1]), "+f"(a[i + 2]), "+f"(a[i + 3])
#define NIBBLE_SIXTEEN(a, i) NIBBLE_FOUR(a, i), NIBBLE_FOUR(a, i + 4), NIBBLE_FOUR(a, i + 8), NIBBLE_FOUR(a, i + 12)
#define NIBBLE_WGMMA_64(TYPE)                                                                                         \
  asm volatile(                                                                                                       \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                                                    \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {"                                                \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "               \
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"                                                         \
      "}, %32, %33, p, 1, 1, 0, 0;\n}\n"                                                                              \
      : NIBBLE_SIXTEEN(sums, 0), NIBBLE_SIXTEEN(sums, 16)                                                             \
      : "l"(x), "l"(w), "r"(accumulate ? 1 : 0))
#define NIBBLE_WGMMA_128(TYPE)                                                                                        \
  asm volatile(                                                                                                       \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                                                    \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {"                                               \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "               \
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "               \
      "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "               \
      "%59, %60, %61, %62, %63"                                                                                       \
      "}, %64, %65, p, 1, 1, 0, 0;\n}\n"                                                                              \
      : NIBBLE_SIXTEEN(sums, 0), NIBBLE_SIXTEEN(sums, 16), NIBBLE_SIXTEEN(sums, 32), NIBBLE_SIXTEEN(sums, 48)         \
      : "l"(x), "l"(w), "r"(accumulate ? 1 : 0))
#define NIBBLE_WGMMA_256(TYPE)                                                                                        \
  asm volatile(                                                                                                       \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"                                                                   \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE " {"                                               \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "               \
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "               \
      "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "               \
      "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, "               \
      "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, "               \
      "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, "                 \
      "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"                      \
      "}, %128, %129, p, 1, 1, 0, 0;\n}\n"                                                                            \
      : NIBBLE_SIXTEEN(sums, 0), NIBBLE_SIXTEEN(sums, 16), NIBBLE_SIXTEEN(sums, 32), NIBBLE_SIXTEEN(sums, 48),        \
        NIBBLE_SIXTEEN(sums, 64), NIBBLE_SIXTEEN(sums, 80), NIBBLE_SIXTEEN(sums, 96), NIBBLE_SIXTEEN(sums, 112)       \
      : "l"(x), "l"(w), "r"(accumulate ? 1 : 0))
// clang-format on

/// One product; N is 64, 128 or 256. Without `accumulate` the sums begin at 0.
template <typename T, int N>
__device__ __forceinline__ void wgmma(float (&sums)[N / 2], std::uint64_t x, std::uint64_t w, bool accumulate) {
  static_assert(N == 64 || N == 128 || N == 256);
  if constexpr (N == 64) {
    if constexpr (std::is_same_v<T, __half>) {
      NIBBLE_WGMMA_64("f16");
    } else {
      NIBBLE_WGMMA_64("bf16");
    }
  } else if constexpr (N == 128) {
    if constexpr (std::is_same_v<T, __half>) {
      NIBBLE_WGMMA_128("f16");
    } else {
      NIBBLE_WGMMA_128("bf16");
    }
  } else {
    if constexpr (std::is_same_v<T, __half>) {
      NIBBLE_WGMMA_256("f16");
    } else {
      NIBBLE_WGMMA_256("bf16");
    }
  }
}

#undef NIBBLE_WGMMA_256
#undef NIBBLE_WGMMA_128
#undef NIBBLE_WGMMA_64
#undef NIBBLE_SIXTEEN
#undef NIBBLE_FOUR

}  // namespace nibble
