#include "quant/linalg.h"

#include "core/error.h"
#include "core/thread_pool.h"

#include <dnnl.h>
#include <Eigen/Cholesky>
#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <vector>

namespace nibble {
namespace {

using RowMajorF = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using RowMajorD = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using BlockF = Eigen::Map<RowMajorF, 0, Eigen::OuterStride<>>;

// Work inside of a block of this many columns is Eigen's (a quarter of the products of 512 columns, 6% of 2048); all
// the rest is oneDNN's, whose products are at full speed from an inner size of about 100 on.
constexpr std::int64_t kBlock = 128;

BlockF block(std::span<float> a, std::int64_t n, std::int64_t row, std::int64_t column, std::int64_t rows,
             std::int64_t columns) {
  return {a.data() + row * n + column, rows, columns, Eigen::OuterStride<>(n)};
}

}  // namespace

void sgemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, float alpha,
           const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
  if (m == 0 || n == 0) return;
  const dnnl_status_t status =
      dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  if (status != dnnl_success) {
    fail("oneDNN could not multiply [{}, {}] by [{}, {}]: status {}", m, k, k, n, static_cast<int>(status));
  }
}

bool cholesky_lower(std::span<float> a, std::int64_t n) {
  for (std::int64_t j = 0; j < n; j += kBlock) {
    const std::int64_t b = std::min(kBlock, n - j);
    const RowMajorD diagonal = block(a, n, j, j, b, b).cast<double>();
    const Eigen::LLT<RowMajorD, Eigen::Lower> llt(diagonal);
    if (llt.info() != Eigen::Success) return false;
    const RowMajorD factor = llt.matrixL();
    if (!factor.diagonal().allFinite() || factor.diagonal().minCoeff() <= 0) return false;
    block(a, n, j, j, b, b) = factor.cast<float>();

    // The panel below: A21 <- A21 L11^-T, in double, since its rounding errors enter everything that follows.
    const std::int64_t below = j + b;
    const std::int64_t rest = n - below;
    if (rest == 0) break;
    ThreadPool::instance().run([&](int thread, int threads) {
      const auto [begin, end] = split_range(rest, 8, thread, threads);
      if (begin == end) return;
      BlockF panel = block(a, n, below + begin, j, end - begin, b);
      RowMajorD rows = panel.cast<double>();
      factor.triangularView<Eigen::Lower>().transpose().solveInPlace<Eigen::OnTheRight>(rows);
      panel = rows.cast<float>();
    });
    // The trailing lower triangle, by block columns: A22 -= A21 A21^T.
    constexpr std::int64_t kWide =
        4 * kBlock;  // wider than the pivots' blocks: fewer, faster products for 12% more work
    for (std::int64_t c = below; c < n; c += kWide) {
      const std::int64_t width = std::min(kWide, n - c);
      sgemm(false, true, n - c, width, b, -1, a.data() + c * n + j, n, a.data() + c * n + j, n, 1, a.data() + c * n + c,
            n);
    }
  }
  return true;
}

void invert_lower(std::span<float> l, std::int64_t n) {
  std::vector<float> product(static_cast<std::size_t>(std::min(kBlock, n)) * static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; i += kBlock) {
    const std::int64_t b = std::min(kBlock, n - i);
    BlockF diagonal = block(l, n, i, i, b, b);
    RowMajorD inverse = RowMajorD::Identity(b, b);
    const RowMajorD lower = diagonal.cast<double>();
    lower.triangularView<Eigen::Lower>().solveInPlace(inverse);
    // X[i, 0..i) = -L_ii^-1 (L[i, 0..i) X[0..i, 0..i)), with the rows above inverted already.
    if (i > 0) {
      sgemm(false, false, b, i, i, 1, l.data() + i * n, n, l.data(), n, 0, product.data(), i);
      const RowMajorF scaled = -inverse.cast<float>();
      sgemm(false, false, b, i, b, 1, scaled.data(), b, product.data(), i, 0, l.data() + i * n, n);
    }
    diagonal = inverse.cast<float>();
    for (std::int64_t r = i; r < i + b; ++r) std::fill(l.begin() + r * n + r + 1, l.begin() + (r + 1) * n, 0.0F);
  }
}

}  // namespace nibble
