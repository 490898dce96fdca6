// Which kernel a product runs on, how it is divided, and what the kernels are told.
#include "kernels/cuda/tile_gemm.h"

#include "core/checked.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tile_kernels.h"

#include <algorithm>
#include <utility>

namespace nibble {
namespace tile {
namespace {

void set_activation(Output& p, std::optional<ActivationKind> kind) {
  if (!kind) return;
  p.form = Form::sigmoid;
  p.linear = 1;
  switch (*kind) {
    case ActivationKind::silu:
      break;
    case ActivationKind::gelu:
      p.form = Form::gelu;
      break;
    case ActivationKind::gelu_tanh:
      // (1 + tanh(u)) / 2 is sigmoid(2 u); 0.79788456 is sqrt(2 / pi).
      p.linear = 2 * 0.79788456f;
      p.cubic = 2 * 0.79788456f * 0.044715f;
      break;
    case ActivationKind::relu:
      p.form = Form::relu;
      break;
    case ActivationKind::quick_gelu:
      p.linear = 1.702f;
      break;
    case ActivationKind::tanh:
      p.form = Form::tanh;
      p.linear = 2;
      break;
  }
}

}  // namespace

TileMaps maps_of(const TileGemm& g, int x_rows, int w_rows) {
  return {matrix_map(g.x, g.type, g.m, g.k, g.x_stride, x_rows), matrix_map(g.w, g.type, g.n, g.k, g.w_stride, w_rows)};
}

Output output_of(const TileGemm& g) {
  Output out;
  out.y = g.y;
  out.y_stride = g.y_stride;
  out.bias = g.bias;
  out.m = static_cast<int>(g.m);
  out.n = static_cast<int>(g.n);
  set_activation(out, g.activation);
  return out;
}

}  // namespace tile

namespace {

// A multiprocessor, of the largest tiles that are for few rows.
constexpr double kFewBlocks = 0.5;

bool aligned(const void* data, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
}

}  // namespace

bool takes(const TileGemm& g, int capability) {
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  constexpr std::int64_t kMostColumns = std::int64_t{1} << 22;  // a grid's second extent counts tiles of them
  if (capability != 90 || (g.type != DType::f16 && g.type != DType::bf16) || g.n % 8 != 0 || g.k % 8 != 0 || g.k <= 0 ||
      g.m >= kMost || g.n >= kMostColumns || g.k >= kMost) {
    return false;
  }
  return aligned(g.x, g.x_stride) && aligned(g.w, g.w_stride) && aligned(g.y, g.y_stride);
}

std::int64_t blocks_of(const TileGemm& g, const TilePlan& plan) {
  const std::int64_t rows = ceil_div(g.m, std::int64_t{plan.rows});
  const bool wide = plan.columns >= tile::kLeastWideColumns;
  return (wide ? ceil_div(rows, std::int64_t{2}) * 2 : rows) * ceil_div(g.n, std::int64_t{plan.columns}) * plan.parts;
}

TilePlan plan_of(const TileGemm& g, int multiprocessors) {
  // What was fastest within whole passes on an H100, with 84 to 16384 rows of 768 and 3072. Small tiles read more of
  // the second cache, so they are for products of few blocks.
  const auto up_to = [&](const TilePlan& plan, double blocks) {
    return static_cast<double>(blocks_of(g, plan)) <= blocks * multiprocessors;
  };
  const TilePlan smallest{64, 32};
  const TilePlan small{64, 64};
  const TilePlan medium{64, 96};
  const TilePlan large{128, 96};
  if (up_to(smallest, 0.75)) return smallest;
  if (up_to(small, g.activation ? 0.82 : 1.5)) return small;
  if (g.activation && up_to(medium, 1.0)) return medium;
  if (up_to(large, kFewBlocks)) return large;
  if (g.activation && up_to(small, 2.0)) return small;
  if (up_to(large, 2.0) || ceil_div(g.k, std::int64_t{tile::kDepth}) < tile::kWideLeastSteps) return large;
  // Of wide tiles those whose last round leaves fewer multiprocessors without work; one of 192 columns takes 0.78 of
  // the time of one of 256.
  const auto time_of = [&](const TilePlan& plan, std::int64_t each) {
    return ceil_div(blocks_of(g, plan), std::int64_t{multiprocessors}) * each;
  };
  const TilePlan wide{128, 192};
  const TilePlan widest{128, 256};
  return time_of(wide, 78) < time_of(widest, 100) ? wide : widest;
}

TilePlan parts_plan_of(const TileGemm& g, int multiprocessors) {
  // Long sums of so few tiles that each may have two multiprocessors or more. Tiles of 128 x 96 were no faster so, nor
  // were shorter sums.
  TilePlan plan{64, 96, 1};
  if (g.k < kLongTileSum || g.activation || g.m <= 0) return plan;
  const std::int64_t blocks = blocks_of(g, plan);
  plan.parts = static_cast<int>(
      std::clamp(std::int64_t{multiprocessors} / blocks, std::int64_t{1}, std::int64_t{kMostSumParts}));
  return plan;
}

bool beats_library(const TileGemm& g, const TilePlan& plan, int multiprocessors) {
  if (g.activation) return true;
  if (g.k >= kLongTileSum) return false;
  // Without an activation the library's kernels, which come in more sizes, take 2 to 12% more than wide tiles from so
  // many rows on where the last round of wide tiles leaves few multiprocessors without work.
  constexpr std::int64_t kManyRows = 2500;
  constexpr double kLeastFill = 0.8;
  if (g.m >= kManyRows && plan.columns >= tile::kLeastWideColumns) {
    const std::int64_t blocks = blocks_of(g, plan);
    const std::int64_t rounds = ceil_div(blocks, std::int64_t{multiprocessors});
    if (static_cast<double>(blocks) >= kLeastFill * static_cast<double>(rounds * multiprocessors)) return true;
  }
  return plan.rows == 64 || (plan.columns < tile::kLeastWideColumns &&
                             static_cast<double>(blocks_of(g, plan)) <= kFewBlocks * multiprocessors);
}

void enqueue(const TileGemm& g, const TilePlan& plan, int multiprocessors, CudaStream& stream) {
  if (g.m == 0 || g.n == 0) return;
  if (plan.columns >= tile::kLeastWideColumns) {
    tile::enqueue_wide(g, plan, multiprocessors, stream);
  } else {
    tile::enqueue_few(g, plan, multiprocessors, stream);
  }
}

}  // namespace nibble
