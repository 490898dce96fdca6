// The second-order information of GPTQ (Frantar et al., "GPTQ", arXiv 2210.17323): H = X^T X of a linear layer's
// inputs, and the factor of its inverse by which the column loop spreads rounding errors.
#pragma once

#include "core/matrix.h"

#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

/// Sums x^T x over rows of inputs.
class Hessian {
 public:
  explicit Hessian(std::int64_t in_features);

  /// Adds the rows of x [rows, in_features] f32. Only the blocks on and above the diagonal are computed.
  void add(const MatrixRef& x);

  std::int64_t in_features() const { return k_; }
  /// Rows seen so far.
  std::int64_t rows() const { return rows_; }
  /// H[i, j], times 2 / rows: the published normalisation. It changes the reported loss only.
  float at(std::int64_t i, std::int64_t j) const;
  std::vector<float> diagonal() const;

 private:
  std::int64_t k_;
  std::int64_t rows_ = 0;
  std::vector<float> sum_;  // [k, k], valid where column >= row / kColumns * kColumns
};

/// How the columns (input features) are ordered while they are quantised.
enum class ColumnOrder {
  original,
  activation,   // by falling diagonal of H: desc_act
  group_aware,  // inside each group by falling diagonal, then groups by their largest one: act_group_aware
};

struct FactorOptions {
  ColumnOrder order = ColumnOrder::original;
  std::int64_t group_size = -1;  // of ColumnOrder::group_aware; -1: one group
  double damp_percent = 0.01;    // of the mean of H's diagonal, added to the diagonal
  double damp_increment = 0.01;  // added to damp_percent each time that H cannot be factored, while it is below 1
};

/// What the column loop needs of H; layers that read the same input share it.
struct HessianFactor {
  std::int64_t in_features = 0;
  std::vector<std::int32_t> order;  // [K]: the column that is quantised as the i-th
  std::vector<std::uint8_t> dead;   // [K], 1 where an input was always 0: its weights become 0
  /// [K, K] upper triangular U with U^T U = (H + damping)^-1, rows and columns in the order of `order`. Empty where H
  /// could not be factored with any damping: then the layer is rounded to nearest.
  std::vector<float> upper;
  double damp_percent = 0;  // that led to success
};

/// Orders, damps and factors. With H = R R^T, R upper triangular (a Cholesky factorisation that starts at the last
/// column), U is R^-1: one factorisation and one triangular inverse, instead of inverting H and factoring that again.
/// Where damping fails up to 1, six times a floor of 1e-6 * max|diagonal| * 10^i is added instead, as GPTQModel does.
/// Throws Error where H is not finite, or has seen no rows.
HessianFactor factor_hessian(const Hessian& hessian, const FactorOptions& options);

}  // namespace nibble
