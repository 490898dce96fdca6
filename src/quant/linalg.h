// Dense linear algebra of the quantiser: products by oneDNN, which chooses its code for the processor at run time and
// uses the pool's threads; small diagonal blocks in double by Eigen. Matrices are row-major. Call from outside of
// parallel regions.
#pragma once

#include <cstdint>
#include <span>

namespace nibble {

/// C [m, n] = alpha * op(A) op(B) + beta * C with op(X) = X or its transpose; lda, ldb and ldc are the row strides, in
/// floats, of the matrices as they lie in memory. Throws Error when oneDNN refuses.
void sgemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, float alpha,
           const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc);

/// Replaces the lower triangle of the symmetric matrix `a` [n, n] by its Cholesky factor L (A = L L^T), reading only
/// the lower triangle; what is above it is left undefined. False where a pivot is not positive and finite.
bool cholesky_lower(std::span<float> a, std::int64_t n);

/// Replaces the lower-triangular matrix `l` [n, n] by its inverse; what is above the diagonal is not read and becomes
/// 0.
void invert_lower(std::span<float> l, std::int64_t n);

}  // namespace nibble
