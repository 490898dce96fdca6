#include "kernels/cpu/common_site.h"

#include "core/checked.h"
#include "core/float_convert.h"
#include "core/thread_pool.h"
#include "kernels/cpu/common_panels.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace nibble {
namespace {

using panels::kPad;
using panels::kTileRows;
using panels::kWidth;

// Up to so many rows each thread prepares all inputs for itself: that costs less than a barrier (1 to 2 us).
constexpr std::int64_t kRedundantRows = 8;
// Rows of products that are kept in a first-level cache (6 KiB) until they are activated: 24 and 48 take the same time.
constexpr std::int64_t kKeptRows = 48;
// Bytes of inputs that meet all panels before the next ones do: they and a panel are to stay in a second-level cache of
// 1 MB. Room for so many rows in any case, as panels come again for each such group.
constexpr std::int64_t kGroupBytes = 640 * 1024;
constexpr std::int64_t kGroupRows = 32;

std::size_t prepared_bytes(std::int64_t inputs, std::int64_t rows) {
  const std::int64_t copies = rows <= kRedundantRows ? ThreadPool::instance().threads() : 1;
  return static_cast<std::size_t>(copies * round_up(rows, std::int64_t{16}) * prepared_stride(inputs)) * 4;
}

// One call of a site: everything by value that may be gone when it runs.
class Call {
 public:
  Call(const PanelLayout& layout, PanelSource source, bool scratch, const LinearArgs& args)
      : layout_(layout),
        source_(std::move(source)),
        scratch_(scratch),
        functions_(panels::functions()),
        rows_(args.rows),
        x_(args.x),
        norm_weight_(args.norm_weight),
        y_(args.y.begin(), args.y.end()),
        residual_(args.residual),
        workspace_(args.workspace) {
    bf16_inputs_ = layout.bf16 && functions_.bf16 != nullptr && rows_ >= functions_.bf16_rows;
    tile_ = bf16_inputs_ ? functions_.bf16_tile : kTileRows;
    prepares_ = bf16_inputs_ || layout.prologue.kind != PrologueKind::none;
  }

  bool prepares_first() const { return prepares_ && rows_ > kRedundantRows; }

  // Its share of the rows, for all threads to read.
  void prepare(int thread, int threads) const {
    const auto [begin, end] = split_range(rows_, 1, thread, threads);
    for (std::int64_t m = begin; m < end; ++m) prepare_row(m, workspace_);
  }

  void multiply(int thread, int threads) const {
    std::byte* prepared = workspace_;
    if (prepares_ && rows_ <= kRedundantRows) {
      prepared += thread * round_up(rows_, std::int64_t{16}) * prepared_stride(layout_.inputs) * 4;
      for (std::int64_t m = 0; m < rows_; ++m) prepare_row(m, prepared);
    }
    std::byte* scratch =
        workspace_ + prepared_bytes(layout_.inputs, rows_) +
        static_cast<std::size_t>(thread) * layout_.step * static_cast<std::size_t>(layout_.panel_bytes);

    const auto steps = static_cast<std::int64_t>(layout_.panels.size() / layout_.step);
    const std::int64_t tiles = ceil_div(rows_, tile_);
    const std::int64_t group = group_tiles(tiles);
    const auto [begin, end] = split_range(steps * tiles, 1, thread, threads);
    std::array<const std::byte*, 2> weights{};
    std::int64_t loaded = -1;
    for (std::int64_t work = begin; work < end;) {
      const std::int64_t first = work / (steps * group) * group;  // tile of the group
      const std::int64_t size = std::min(group, tiles - first);
      const std::int64_t step = (work - first * steps) / size;
      const std::int64_t tile = (work - first * steps) % size;  // of the group
      const std::int64_t count = std::min(size - tile, end - work);
      const std::size_t panel = static_cast<std::size_t>(step) * layout_.step;
      if (step != loaded) {
        for (std::size_t i = 0; i < layout_.step; ++i) {
          weights[i] =
              source_(panel + i, scratch_ ? scratch + i * static_cast<std::size_t>(layout_.panel_bytes) : nullptr);
        }
        loaded = step;
      }
      const std::int64_t m = (first + tile) * tile_;
      multiply_rows(panel, weights, prepared, m, std::min(count * tile_, rows_ - m));
      work += count;
    }
  }

 private:
  // Tiles that meet all panels before the next ones do: their inputs stay in a second-level cache, and panels come from
  // the one behind it once a group. The other way round, inputs come again for each panel, which is slower from some
  // hundred rows on (f32, K 768, N 3072, 512 rows: 1.06 of the time). Panels that are written when they are asked for
  // are asked for once. Groups are of one size as nearly as can be: a last one of few rows would wait for its panels.
  std::int64_t group_tiles(std::int64_t tiles) const {
    if (scratch_) return tiles;
    const std::int64_t tile_bytes = tile_ * layout_.inputs * (bf16_inputs_ ? 2 : 4);
    const std::int64_t most = std::max(kGroupBytes / tile_bytes, ceil_div(kGroupRows, tile_));
    return ceil_div(tiles, ceil_div(tiles, most));
  }

  void prepare_row(std::int64_t m, std::byte* prepared) const {
    const float* x = x_.f32_row(m);
    const std::int64_t k = layout_.inputs;
    float factor = 1;
    if (layout_.prologue.kind == PrologueKind::rms_norm) {
      factor = 1.0f / std::sqrt(functions_.sum_squares(x, k) / static_cast<float>(k) + layout_.prologue.eps);
    }
    const std::int64_t at = m * prepared_stride(k);
    if (bf16_inputs_) {
      functions_.scale_bf16(x, norm_weight_, factor, k, round_up(k, kPad),
                            reinterpret_cast<std::uint16_t*>(prepared) + at);
    } else {
      functions_.scale(x, norm_weight_, factor, k, reinterpret_cast<float*>(prepared) + at);
    }
  }

  // Rows [m, m + rows) of the panels of a step.
  void multiply_rows(std::size_t panel, const std::array<const std::byte*, 2>& weights, const std::byte* prepared,
                     std::int64_t m, std::int64_t rows) const {
    const PanelLayout::Panel& to = layout_.panels[panel];
    const float* bias = layout_.bias.data() + panel * static_cast<std::size_t>(kWidth);
    const EpilogueKind kind = layout_.epilogue.kind;
    const MatrixRef& y = y_[kind == EpilogueKind::gated ? 0 : to.part];
    const float* residual = kind == EpilogueKind::residual ? residual_.f32_row(m) + to.first : nullptr;
    if (to.count == kWidth && (kind == EpilogueKind::store || kind == EpilogueKind::residual)) {
      product(weights[0], prepared, m, rows, {y.f32_row(m) + to.first, y.stride, bias, residual, residual_.stride});
      return;
    }
    // Through memory that stays in a first-level cache, in whole tiles of which the last takes what is left: a few rows
    // apart would wait for the panel.
    alignas(64) float first[kKeptRows * kWidth];
    alignas(64) float second[kKeptRows * kWidth];
    const std::int64_t most = (kKeptRows - 1) / tile_ * tile_;
    for (std::int64_t done = 0, count = 0; done < rows; done += count) {
      count = rows - done <= kKeptRows ? rows - done : most;
      float* out = y.f32_row(m + done) + to.first;
      product(weights[0], prepared, m + done, count, {first, kWidth, bias, nullptr, 0});
      if (kind == EpilogueKind::gated) {
        product(weights[1], prepared, m + done, count, {second, kWidth, bias + kWidth, nullptr, 0});
        functions_.gate(layout_.epilogue.activation, first, second, count, to.count, out, y.stride);
      } else if (kind == EpilogueKind::activation) {
        functions_.activate(layout_.epilogue.activation, first, count, to.count, out, y.stride);
      } else {
        for (std::int64_t r = 0; r < count; ++r) {
          const float* add = residual == nullptr ? nullptr : residual + (done + r) * residual_.stride;
          for (std::int64_t n = 0; n < to.count; ++n) {
            out[r * y.stride + n] = (add == nullptr ? 0 : add[n]) + first[r * kWidth + n];
          }
        }
      }
    }
  }

  void product(const std::byte* weights, const std::byte* prepared, std::int64_t m, std::int64_t count,
               const panels::Output& to) const {
    const std::int64_t k = layout_.inputs;
    if (bf16_inputs_) {
      const std::int64_t stride = prepared_stride(k);
      functions_.bf16(reinterpret_cast<const std::uint16_t*>(weights), round_up(k, kPad),
                      reinterpret_cast<const std::uint16_t*>(prepared) + m * stride, stride, count, to);
      return;
    }
    const std::int64_t stride = prepares_ ? prepared_stride(k) : x_.stride;
    const float* x = prepares_ ? reinterpret_cast<const float*>(prepared) + m * stride : x_.f32_row(m);
    if (layout_.bf16) {
      functions_.mixed(reinterpret_cast<const std::uint16_t*>(weights), k, x, stride, count, to);
    } else {
      functions_.f32(reinterpret_cast<const float*>(weights), k, x, stride, count, to);
    }
  }

  const PanelLayout& layout_;
  PanelSource source_;
  bool scratch_;
  panels::Functions functions_;
  std::int64_t rows_;
  MatrixRef x_;
  const float* norm_weight_;
  std::vector<MatrixRef> y_;
  MatrixRef residual_;
  std::byte* workspace_;
  bool bf16_inputs_ = false;
  std::int64_t tile_ = kTileRows;
  bool prepares_ = false;
};

}  // namespace

std::int64_t prepared_stride(std::int64_t inputs) { return round_up(inputs, kPad) + kPad; }

PanelLayout::PanelLayout(const LinearSite& site)
    : prologue(site.prologue), epilogue(site.epilogue), bf16(site.compute == DType::bf16), inputs(site.in_features()) {
  panel_bytes = bf16 ? round_up(inputs, kPad) * kWidth * 2 : inputs * kWidth * 4;
  const auto add = [&](std::size_t part, std::int64_t first) {
    panels.push_back({part, first, std::min(kWidth, site.parts[part].out_features - first)});
  };
  if (epilogue.kind == EpilogueKind::gated) {
    step = 2;
    for (std::int64_t n = 0; n < site.parts[0].out_features; n += kWidth) {
      add(0, n);
      add(1, n);
    }
  } else {
    for (std::size_t part = 0; part < site.parts.size(); ++part) {
      for (std::int64_t n = 0; n < site.parts[part].out_features; n += kWidth) add(part, n);
    }
  }
  bias.assign(panels.size() * static_cast<std::size_t>(kWidth), 0.0f);
}

void PanelLayout::set_bias(std::span<const LinearTensors> tensors) {
  std::vector<std::vector<float>> biases;
  for (const LinearTensors& part : tensors) biases.push_back(bias_of(part));
  for (std::size_t i = 0; i < panels.size(); ++i) {
    const std::vector<float>& from = biases[panels[i].part];
    if (!from.empty())
      std::copy_n(from.begin() + panels[i].first, panels[i].count,
                  bias.begin() + static_cast<std::ptrdiff_t>(i) * kWidth);
  }
}

void write_panel(const PanelLayout& layout, const float* rows, std::int64_t count, std::byte* panel) {
  std::memset(panel, 0, static_cast<std::size_t>(layout.panel_bytes));
  for (std::int64_t n = 0; n < count; ++n) {
    const float* row = rows + n * layout.inputs;
    if (layout.bf16) {
      auto* to = reinterpret_cast<std::uint16_t*>(panel) + 2 * n;
      for (std::int64_t k = 0; k < layout.inputs; ++k) to[k / 2 * 2 * kWidth + k % 2] = float_to_bf16(row[k]);
    } else {
      auto* to = reinterpret_cast<float*>(panel) + n;
      for (std::int64_t k = 0; k < layout.inputs; ++k) to[k * kWidth] = row[k];
    }
  }
}

std::size_t panels_workspace(const LinearSite& site, std::int64_t rows, bool scratch) {
  std::size_t bytes = prepared_bytes(site.in_features(), rows);
  if (scratch) {
    const PanelLayout layout(site);
    bytes += static_cast<std::size_t>(ThreadPool::instance().threads()) * layout.step *
             static_cast<std::size_t>(layout.panel_bytes);
  }
  return bytes;
}

void prepare_inputs(const PanelLayout& layout, const LinearArgs& args, CpuStream& stream) {
  const auto call = std::make_shared<const Call>(layout, nullptr, false, args);
  stream.parallel([call](int thread, int threads) { call->prepare(thread, threads); });
}

void run_panels(const PanelLayout& layout, PanelSource source, bool scratch, const LinearArgs& args,
                CpuStream& stream) {
  const auto call = std::make_shared<const Call>(layout, std::move(source), scratch, args);
  if (call->prepares_first()) stream.parallel([call](int thread, int threads) { call->prepare(thread, threads); });
  stream.parallel([call](int thread, int threads) { call->multiply(thread, threads); });
}

}  // namespace nibble
