#include "quant/hessian.h"

#include "core/error.h"
#include "core/thread_pool.h"
#include "quant/linalg.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <utility>

namespace nibble {
namespace {

// Columns of H computed at a time: 1536 inputs take 2/3 of the full product's work this way, and blocks stay wide
// enough for the product to run at full speed.
constexpr std::int64_t kColumns = 512;

// Attempts of the diagonal floor after damping has failed; each adds ten times the one before.
constexpr int kFloorAttempts = 6;
constexpr double kFloor = 1e-6;

std::vector<std::int32_t> order_columns(const std::vector<float>& diagonal, const FactorOptions& options) {
  const auto k = static_cast<std::int64_t>(diagonal.size());
  std::vector<std::int32_t> order(diagonal.size());
  std::iota(order.begin(), order.end(), 0);
  const auto larger = [&](std::int32_t a, std::int32_t b) {
    return diagonal[static_cast<std::size_t>(a)] > diagonal[static_cast<std::size_t>(b)];
  };
  if (options.order == ColumnOrder::activation) {
    std::stable_sort(order.begin(), order.end(), larger);
  } else if (options.order == ColumnOrder::group_aware) {
    const std::int64_t group = options.group_size > 0 ? std::min(options.group_size, k) : k;
    const std::int64_t full = k / group;  // columns past the last full group stay where they are
    for (std::int64_t g = 0; g < full; ++g) {
      std::stable_sort(order.begin() + g * group, order.begin() + (g + 1) * group, larger);
    }
    std::vector<std::int64_t> groups(static_cast<std::size_t>(full));
    std::iota(groups.begin(), groups.end(), 0);
    std::stable_sort(groups.begin(), groups.end(), [&](std::int64_t a, std::int64_t b) {
      return larger(order[static_cast<std::size_t>(a * group)], order[static_cast<std::size_t>(b * group)]);
    });
    const std::vector<std::int32_t> sorted = order;
    for (std::int64_t g = 0; g < full; ++g) {
      const std::int64_t from = groups[static_cast<std::size_t>(g)] * group;
      std::copy(sorted.begin() + from, sorted.begin() + from + group, order.begin() + g * group);
    }
  }
  return order;
}

}  // namespace

Hessian::Hessian(std::int64_t in_features)
    : k_(in_features), sum_(static_cast<std::size_t>(in_features) * static_cast<std::size_t>(in_features), 0.0F) {}

void Hessian::add(const MatrixRef& x) {
  if (x.columns != k_) fail("the Hessian of {} inputs was given rows of {}", k_, x.columns);
  if (x.rows == 0) return;
  const auto* data = static_cast<const float*>(x.data);
  for (std::int64_t i = 0; i < k_; i += kColumns) {
    const std::int64_t height = std::min(kColumns, k_ - i);
    sgemm(true, false, height, k_ - i, x.rows, 1, data + i, x.stride, data + i, x.stride, 1, sum_.data() + i * k_ + i,
          k_);
  }
  rows_ += x.rows;
}

float Hessian::at(std::int64_t i, std::int64_t j) const {
  if (i > j) std::swap(i, j);
  return sum_[static_cast<std::size_t>(i * k_ + j)] * (2.0F / static_cast<float>(std::max<std::int64_t>(rows_, 1)));
}

std::vector<float> Hessian::diagonal() const {
  std::vector<float> out(static_cast<std::size_t>(k_));
  for (std::int64_t i = 0; i < k_; ++i) out[static_cast<std::size_t>(i)] = at(i, i);
  return out;
}

HessianFactor factor_hessian(const Hessian& hessian, const FactorOptions& options) {
  // Asked this way round, a NaN is refused too.
  const bool damping_fits = options.damp_percent > 0 && options.damp_percent < 1;
  if (!damping_fits) fail_usage("damping of {} should be larger than 0 and smaller than 1", options.damp_percent);
  const std::int64_t k = hessian.in_features();
  if (hessian.rows() == 0) fail("GPTQ needs calibration inputs, and the layer has seen none");

  HessianFactor out;
  out.in_features = k;
  std::vector<float> diagonal = hessian.diagonal();
  out.dead.assign(static_cast<std::size_t>(k), 0);
  double sum = 0;
  float largest = 0;
  for (std::size_t i = 0; i < diagonal.size(); ++i) {
    if (!std::isfinite(diagonal[i])) fail("the calibration inputs of feature {} are not finite or too large", i);
    if (diagonal[i] == 0) {
      out.dead[i] = 1;
      diagonal[i] = 1;
    }
    sum += diagonal[i];
    largest = std::max(largest, diagonal[i]);
  }
  const double mean = sum / static_cast<double>(k);
  out.order = order_columns(diagonal, options);

  // The matrix in falling order of the positions, so that a lower Cholesky factor L of it gives R[i, j] = L[K-1-i,
  // K-1-j].
  std::vector<float> work(static_cast<std::size_t>(k) * static_cast<std::size_t>(k));
  const auto attempt = [&](double added) {
    ThreadPool::instance().run([&](int thread, int threads) {
      const auto [begin, end] = split_range(k, 1, thread, threads);
      for (std::int64_t r = begin; r < end; ++r) {
        const std::int64_t i = out.order[static_cast<std::size_t>(k - 1 - r)];
        for (std::int64_t c = 0; c <= r; ++c) {
          work[static_cast<std::size_t>(r * k + c)] = hessian.at(i, out.order[static_cast<std::size_t>(k - 1 - c)]);
        }
        work[static_cast<std::size_t>(r * k + r)] = diagonal[static_cast<std::size_t>(i)] + static_cast<float>(added);
      }
    });
    return cholesky_lower(work, k);
  };

  bool good = false;
  double damp = options.damp_percent;
  for (;; damp += options.damp_increment) {
    good = attempt(damp * mean);
    if (good || options.damp_increment <= 0 || damp + options.damp_increment >= 1) break;
  }
  out.damp_percent = damp;
  for (int i = 0; !good && i < kFloorAttempts; ++i) good = attempt(damp * mean + kFloor * largest * std::pow(10.0, i));
  if (!good) return out;

  invert_lower(work, k);
  std::reverse(work.begin(), work.end());  // both indices at once: U[i, j] = X[K-1-i, K-1-j]
  out.upper = std::move(work);
  return out;
}

}  // namespace nibble
