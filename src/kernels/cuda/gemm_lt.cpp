#include "kernels/cuda/gemm_lt.h"

#include "core/error.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <tuple>

namespace nibble {
namespace {

// What NVIDIA's notes recommend for Hopper; smaller ones leave out split-K algorithms that few rows need.
constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

constexpr int kProposals = 8;  // of kernels that one is chosen from

void check_lt(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) fail("cuBLASLt: {}: {}", what, cublasLtGetStatusString(status));
}

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return CUDA_R_32F;
    case DType::f16:
      return CUDA_R_16F;
    case DType::bf16:
      return CUDA_R_16BF;
    default:
      fail("a product of {} on the GPU is not supported; use f32, f16 or bf16", name_of(dtype));
  }
}

// The largest power of two, at most 256, that an address is a multiple of.
std::uint32_t alignment_of(const void* p) {
  return std::uint32_t{1} << std::min(8, std::countr_zero(reinterpret_cast<std::uintptr_t>(p) | 256u));
}

// Descriptors and the chosen algorithm of one shape.
struct Plan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
  std::optional<cublasLtMatmulAlgo_t> algorithm;  // none: the library has none
};

using Key = std::tuple<int, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool,
                       DType, DType, bool, std::uint32_t, std::uint32_t, std::uint32_t, bool, std::int64_t,
                       std::int64_t, std::int64_t, std::int64_t, bool>;

// The kernel for such a product among those that the library proposes, the best by its own estimate first. With a long
// sum and blocks for a part of the GPU only, what counts is how often the second cache is read: on an H100 1536 rows of
// 3072 to 768 took 13 us in place of 18 with clusters of eight, which share their tiles, and as many blocks as there is
// room for.
const cublasLtMatmulHeuristicResult_t& preferred(std::span<const cublasLtMatmulHeuristicResult_t> proposed) {
  const cublasLtMatmulHeuristicResult_t* best = nullptr;
  for (const auto& one : proposed) {
    std::uint16_t cluster = 0;
    std::int32_t parts = 1;
    std::size_t written = 0;
    check_lt(cublasLtMatmulAlgoConfigGetAttribute(&one.algo, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, &cluster,
                                                  sizeof cluster, &written),
             "asking for clusters");
    check_lt(cublasLtMatmulAlgoConfigGetAttribute(&one.algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts, sizeof parts,
                                                  &written),
             "asking for parts of a sum");
    const bool shares = cluster != CUBLASLT_CLUSTER_SHAPE_AUTO && cluster != CUBLASLT_CLUSTER_SHAPE_1x1x1 &&
                        cluster != CUBLASLT_CLUSTER_SHAPE_2x1x1 && cluster != CUBLASLT_CLUSTER_SHAPE_1x2x1;
    if (one.state != CUBLAS_STATUS_SUCCESS || !shares || parts > 1 || one.wavesCount > 1) continue;
    if (best == nullptr || one.wavesCount > best->wavesCount) best = &one;
  }
  return best != nullptr ? *best : proposed.front();
}

class Library {
 public:
  static Library& instance() {
    static Library library;
    return library;
  }

  const Plan& plan(const GemmArgs& a, int device) {
    const Key key{device,
                  a.m,
                  a.n,
                  a.k,
                  a.x_stride,
                  a.w_stride,
                  a.y_stride,
                  a.w_is_kn,
                  a.operands,
                  a.y_dtype,
                  a.half_accumulate,
                  alignment_of(a.x),
                  alignment_of(a.w),
                  alignment_of(a.y),
                  a.same_bias != nullptr,
                  a.batch,
                  a.x_step,
                  a.w_step,
                  a.y_step,
                  a.prefers_clusters};
    const std::lock_guard lock(mutex_);
    const auto found = plans_.find(key);
    return found != plans_.end() ? found->second : plans_.emplace(key, make(a)).first->second;
  }

  cublasLtHandle_t handle() const { return handle_; }

 private:
  Library() { check_lt(cublasLtCreate(&handle_), "starting"); }

  static void set_batch(cublasLtMatrixLayout_t layout, std::int64_t batch, std::int64_t step) {
    const auto count = static_cast<std::int32_t>(batch);
    check_lt(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count),
             "describing a batch");
    check_lt(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof step),
             "describing a batch");
  }

  // Column-major in the library's words: y^T [n, m] = w [n, k] x^T [k, m].
  Plan make(const GemmArgs& a) {
    Plan plan;
    const cudaDataType_t operands = data_type(a.operands);
    const bool half = a.half_accumulate;
    check_lt(cublasLtMatmulDescCreate(&plan.operation, half ? CUBLAS_COMPUTE_16F : CUBLAS_COMPUTE_32F,
                                      half ? CUDA_R_16F : CUDA_R_32F),
             "describing a product");
    const cublasOperation_t w_operation = a.w_is_kn ? CUBLAS_OP_N : CUBLAS_OP_T;
    check_lt(
        cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, &w_operation, sizeof w_operation),
        "describing a product");
    const auto rows = static_cast<std::uint64_t>(a.w_is_kn ? a.n : a.k);
    const auto columns = static_cast<std::uint64_t>(a.w_is_kn ? a.k : a.n);
    check_lt(cublasLtMatrixLayoutCreate(&plan.w, operands, rows, columns, a.w_stride), "describing weights");
    check_lt(cublasLtMatrixLayoutCreate(&plan.x, operands, static_cast<std::uint64_t>(a.k),
                                        static_cast<std::uint64_t>(a.m), a.x_stride),
             "describing inputs");
    check_lt(cublasLtMatrixLayoutCreate(&plan.y, data_type(a.y_dtype), static_cast<std::uint64_t>(a.n),
                                        static_cast<std::uint64_t>(a.m), a.y_stride),
             "describing outputs");
    if (a.batch > 1) {
      set_batch(plan.w, a.batch, a.w_step);
      set_batch(plan.x, a.batch, a.x_step);
      set_batch(plan.y, a.batch, a.y_step);
    }
    if (a.same_bias != nullptr) {
      const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      check_lt(
          cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue),
          "describing a bias");
    }
    cublasLtMatmulPreference_t preference = nullptr;
    check_lt(cublasLtMatmulPreferenceCreate(&preference), "describing what is wanted");
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      check_lt(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
               "describing what is wanted");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(a.w));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(a.x));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(a.y));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(a.y));
    // Reductions in the output's type would round partial sums to 16 bits.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_NONE));
    std::array<cublasLtMatmulHeuristicResult_t, kProposals> proposed{};
    int found = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle_, plan.operation, plan.w, plan.x, plan.y, plan.y, preference,
                                       a.prefers_clusters ? kProposals : 1, proposed.data(), &found);
    cublasLtMatmulPreferenceDestroy(preference);
    if (status == CUBLAS_STATUS_SUCCESS && found > 0) {
      const auto all = std::span(proposed).first(static_cast<std::size_t>(found));
      plan.algorithm = (a.prefers_clusters ? preferred(all) : all.front()).algo;
    }
    return plan;
  }

  cublasLtHandle_t handle_ = nullptr;
  std::mutex mutex_;
  std::map<Key, Plan> plans_;
};

}  // namespace

std::size_t gemm_workspace_bytes() { return kWorkspaceBytes; }

void gemm(const GemmArgs& a, CudaStream& stream) {
  if (a.m == 0 || a.n == 0) return;
  int device = 0;
  check_cuda(cudaGetDevice(&device), "asking for the current GPU");
  Library& library = Library::instance();
  const Plan& plan = library.plan(a, device);
  if (!plan.algorithm) {
    gemm_plain(a, stream);
    return;
  }
  // The plan is shared by all calls of its shape on this thread of enqueueing; the library reads it during the call.
  if (a.same_bias != nullptr) {
    check_lt(cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                            static_cast<const void*>(&a.same_bias), sizeof a.same_bias),
             "giving a bias");
  }
  const float one = 1;
  const float beta = a.accumulate ? 1.0f : 0.0f;
  // f16 bits of 1 and 0, for sums in f16.
  const std::uint16_t half_one = 0x3c00;
  const std::uint16_t half_beta = a.accumulate ? 0x3c00 : 0;
  const void* alpha_at = a.half_accumulate ? static_cast<const void*>(&half_one) : &one;
  const void* beta_at = a.half_accumulate ? static_cast<const void*>(&half_beta) : &beta;
  check_lt(cublasLtMatmul(library.handle(), plan.operation, alpha_at, a.w, plan.w, a.x, plan.x, beta_at, a.y, plan.y,
                          a.y, plan.y, &*plan.algorithm, a.workspace, kWorkspaceBytes, stream.handle()),
           "multiplying");
  if (a.bias != nullptr) add_bias(a.y, a.y_dtype, a.y_stride, a.m, a.n, a.bias, stream);
}

}  // namespace nibble
