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
#define NIBBLE_FOUR(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define NIBBLE_16(i) NIBBLE_FOUR(i), NIBBLE_FOUR(i + 4), NIBBLE_FOUR(i + 8), NIBBLE_FOUR(i + 12)
#define NIBBLE_32(i) NIBBLE_16(i), NIBBLE_16(i + 16)
#define NIBBLE_64(i) NIBBLE_32(i), NIBBLE_32(i + 32)
#define NIBBLE_NAMES_16 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NIBBLE_NAMES_32 NIBBLE_NAMES_16 ", " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NIBBLE_NAMES_48 NIBBLE_NAMES_32 ", " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define NIBBLE_NAMES_64 NIBBLE_NAMES_48 ", " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NIBBLE_NAMES_96 NIBBLE_NAMES_64 ", " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, " \
  "%81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NIBBLE_NAMES_128 NIBBLE_NAMES_96 ", " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, " \
  "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define NIBBLE_WGMMA(N, TYPE, NAMES, X, W, P, ...)                                                                     \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n"                                                         \
               "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" NAMES "}, " X ", " W                \
               ", p, 1, 1, 0, 0;\n}\n"                                                                                 \
               : __VA_ARGS__                                                                                           \
               : "l"(x), "l"(w), "r"(accumulate ? 1 : 0))
#define NIBBLE_WGMMA_OF(TYPE)                                                                                          \
  if constexpr (N == 32) {                                                                                             \
    NIBBLE_WGMMA("32", TYPE, NIBBLE_NAMES_16, "%16", "%17", "%18", NIBBLE_16(0));                                      \
  } else if constexpr (N == 64) {                                                                                      \
    NIBBLE_WGMMA("64", TYPE, NIBBLE_NAMES_32, "%32", "%33", "%34", NIBBLE_32(0));                                      \
  } else if constexpr (N == 96) {                                                                                      \
    NIBBLE_WGMMA("96", TYPE, NIBBLE_NAMES_48, "%48", "%49", "%50", NIBBLE_32(0), NIBBLE_16(32));                       \
  } else if constexpr (N == 128) {                                                                                     \
    NIBBLE_WGMMA("128", TYPE, NIBBLE_NAMES_64, "%64", "%65", "%66", NIBBLE_64(0));                                     \
  } else if constexpr (N == 192) {                                                                                     \
    NIBBLE_WGMMA("192", TYPE, NIBBLE_NAMES_96, "%96", "%97", "%98", NIBBLE_64(0), NIBBLE_32(64));                      \
  } else {                                                                                                             \
    NIBBLE_WGMMA("256", TYPE, NIBBLE_NAMES_128, "%128", "%129", "%130", NIBBLE_64(0), NIBBLE_64(64));                  \
  }
// clang-format on

/// One product; N is 32, 64, 96, 128, 192 or 256. Without `accumulate` the sums begin at 0.
template <typename T, int N>
__device__ __forceinline__ void wgmma(float (&sums)[N / 2], std::uint64_t x, std::uint64_t w, bool accumulate) {
  static_assert(N == 32 || N == 64 || N == 96 || N == 128 || N == 192 || N == 256);
  if constexpr (std::is_same_v<T, __half>) {
    NIBBLE_WGMMA_OF("f16")
  } else {
    NIBBLE_WGMMA_OF("bf16")
  }
}

/// The same with x[64, 16] in registers, as mma.sync's operand A of each warp's 16 rows, and w[16, 64] with rows along
/// k, of 128 bytes with 128-byte swizzle: sums[64, 64] += x w. 16 rows further: 128 more in `w`.
template <typename T>
__device__ __forceinline__ void wgmma_values(float (&sums)[32], const unsigned (&x)[4], std::uint64_t w) {
  // clang-format off
#define NIBBLE_WGMMA_VALUES(TYPE)                                                                                      \
  asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"                                                             \
               "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" NIBBLE_NAMES_32 "}, "                  \
               "{%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n"                                                           \
               : NIBBLE_32(0)                                                                                          \
               : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(w))
  // clang-format on
  if constexpr (std::is_same_v<T, __half>) {
    NIBBLE_WGMMA_VALUES("f16");
  } else {
    NIBBLE_WGMMA_VALUES("bf16");
  }
#undef NIBBLE_WGMMA_VALUES
}

#undef NIBBLE_WGMMA_OF
#undef NIBBLE_WGMMA
#undef NIBBLE_NAMES_128
#undef NIBBLE_NAMES_96
#undef NIBBLE_NAMES_64
#undef NIBBLE_NAMES_48
#undef NIBBLE_NAMES_32
#undef NIBBLE_NAMES_16
#undef NIBBLE_64
#undef NIBBLE_32
#undef NIBBLE_16
#undef NIBBLE_FOUR

}  // namespace nibble
