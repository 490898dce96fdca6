#include "kernels/cuda/tensor_map.h"

#include "core/cuda/cuda_check.h"
#include "core/error.h"

#include <cuda_runtime.h>

#include <array>

namespace nibble {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's function, without linking the driver.
Encode encoder_of_maps() {
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result),
               "looking for cuTensorMapEncodeTiled");
    if (function == nullptr || result != cudaDriverEntryPointSuccess) fail("the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(function);
  }();
  return encode;
}

}  // namespace

CUtensorMap matrix_map(const void* data, DType type, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                       int tile_rows) {
  CUtensorMap map{};
  const std::array<cuuint64_t, 2> sizes = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const std::array<cuuint64_t, 1> strides = {static_cast<cuuint64_t>(stride) * 2};
  const std::array<cuuint32_t, 2> box = {kMapColumns, static_cast<cuuint32_t>(tile_rows)};
  const std::array<cuuint32_t, 2> steps = {1, 1};
  const CUresult status = encoder_of_maps()(
      &map, type == DType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
      const_cast<void*>(data), sizes.data(), strides.data(), box.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    fail("cuTensorMapEncodeTiled: error {} for [{}, {}] with rows {} apart", static_cast<int>(status), rows, columns,
         stride);
  }
  return map;
}

}  // namespace nibble
