// Random GPTQ sites, a call of `packed` on them, and their product in double with the bound that the rounding of
// activations allows.
#pragma once

#include "core/checked.h"
#include "core/cpu_device.h"
#include "core/float_convert.h"
#include "formats/gptq_pack.h"
#include "kernels/registry.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace nibble::test {

struct PackedCase {
  std::int64_t inputs = 64;
  std::vector<std::int64_t> outputs = {32};
  int bits = 4;
  std::int64_t group = 32;  // -1: one
  bool act_order = false;
  bool symmetric = true;
  bool bias = false;
  bool wide_scales = false;
  bool norm = false;
  Epilogue epilogue = {};
  DType compute = DType::f32;
};

class PackedSiteForTest {
 public:
  explicit PackedSiteForTest(const PackedCase& c, unsigned seed = 1) : random_(seed) {
    const std::int64_t group = c.group < 0 ? c.inputs : c.group;
    std::vector<std::int32_t> g_idx(static_cast<std::size_t>(c.inputs));
    for (std::int64_t k = 0; k < c.inputs; ++k)
      g_idx[static_cast<std::size_t>(k)] = static_cast<std::int32_t>(k / group);
    for (std::size_t i = 0; i < c.outputs.size(); ++i) {
      if (c.act_order) std::shuffle(g_idx.begin(), g_idx.end(), random_);
      add_part(c, g_idx, group, c.outputs[i], i);
    }
    site_.compute = c.compute;
    site_.epilogue = c.epilogue;
    if (c.norm) {
      site_.prologue = {PrologueKind::rms_norm, 1e-5f};
      for (std::int64_t k = 0; k < c.inputs; ++k) norm_weight_.push_back(uniform(0.5f, 1.5f));
    }
    for (const GptqTensors& gptq : gptq_) tensors_.push_back({{}, &gptq, {}});
  }

  LinearSite& site() { return site_; }
  const std::vector<LinearTensors>& tensors() const { return tensors_; }
  std::deque<GptqTensors>& gptq() { return gptq_; }
  const std::vector<float>& norm_weight() const { return norm_weight_; }

  float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(random_); }

  /// Values in (-1, 1), the last row a thousand times larger, one value in each row a hundred times.
  std::vector<float> inputs(std::int64_t rows) {
    const std::int64_t k = site_.in_features();
    std::vector<float> x(static_cast<std::size_t>(rows * k));
    for (float& v : x) v = uniform(-1, 1);
    for (std::int64_t r = 0; r < rows; ++r) x[static_cast<std::size_t>(r * k + (r * 7) % k)] *= 100;
    if (rows > 1) {
      for (std::int64_t i = (rows - 1) * k; i < rows * k; ++i) x[static_cast<std::size_t>(i)] *= 1000;
    }
    return x;
  }

  /// All parts' outputs, one behind the other, [rows, out] each; or the one output of an epilogue. Gaps are checked.
  std::vector<float> run(const LinearKernel& kernel, const PackedLinear& packed, const std::vector<float>& x,
                         std::int64_t rows, const std::vector<float>& residual = {}) const {
    const auto stream = cpu_device().make_stream();
    const auto workspace = cpu_device().allocate(kernel.workspace(site_, rows), "a test");
    const bool one = site_.epilogue.kind != EpilogueKind::store;
    std::vector<std::vector<float>> out;
    std::vector<MatrixRef> refs;
    for (const LinearDesc& part : site_.parts) {
      out.emplace_back(static_cast<std::size_t>(rows * (part.out_features + kGap)),
                       std::numeric_limits<float>::quiet_NaN());
      refs.push_back({nullptr, DType::f32, rows, part.out_features, part.out_features + kGap});
      if (one) break;
    }
    for (std::size_t i = 0; i < refs.size(); ++i) refs[i].data = out[i].data();
    std::vector<float> input = x;
    std::vector<float> added = residual;
    LinearArgs args;
    args.rows = rows;
    args.x = {input.data(), DType::f32, rows, site_.in_features(), site_.in_features()};
    args.norm_weight = norm_weight_.empty() ? nullptr : norm_weight_.data();
    args.y = refs;
    if (!residual.empty()) args.residual = {added.data(), DType::f32, rows, refs[0].columns, refs[0].columns};
    args.workspace = workspace->data();
    kernel.enqueue(packed, args, *stream);
    stream->synchronize();
    std::vector<float> flat;
    for (std::size_t i = 0; i < out.size(); ++i) {
      for (std::int64_t r = 0; r < rows; ++r) {
        const float* const row = out[i].data() + r * refs[i].stride;
        flat.insert(flat.end(), row, row + refs[i].columns);
        for (std::int64_t g = 0; g < kGap; ++g) {
          if (!std::isnan(row[refs[i].columns + g])) throw Error("something was written between rows");
        }
      }
    }
    return flat;
  }

  /// x W^T + bias of one part in double, [rows, out], and the error that rounding activations to `limit` steps may
  /// cause.
  void reference(std::size_t part, const std::vector<float>& x, std::int64_t rows, double limit, std::vector<double>& y,
                 std::vector<double>& bound) const {
    const GptqTensors& gptq = gptq_[part];
    const std::int64_t k = gptq.in_features;
    y.assign(static_cast<std::size_t>(rows * gptq.out_features), 0);
    bound = y;
    std::vector<float> w(static_cast<std::size_t>(k));
    std::vector<std::vector<double>> inputs;
    std::vector<std::vector<double>> largest;
    for (std::int64_t r = 0; r < rows; ++r) {
      inputs.push_back(normalised(x.data() + r * k, k));
      std::vector<double> group(static_cast<std::size_t>(gptq.groups));
      for (std::int64_t i = 0; i < k; ++i) {
        double& top = group[static_cast<std::size_t>(gptq.g_idx[static_cast<std::size_t>(i)])];
        top = std::max(top, std::abs(inputs.back()[static_cast<std::size_t>(i)]));
      }
      largest.push_back(std::move(group));
    }
    for (std::int64_t n = 0; n < gptq.out_features; ++n) {
      gptq.dequantize_row(n, w.data());
      for (std::int64_t r = 0; r < rows; ++r) {
        double sum = gptq.bias.empty() ? 0 : static_cast<double>(gptq.bias[static_cast<std::size_t>(n)]);
        double error = 0;
        double size = 0;
        for (std::int64_t i = 0; i < k; ++i) {
          const auto at = static_cast<std::size_t>(i);
          const double weight = static_cast<double>(w[at]);
          const double top = largest[static_cast<std::size_t>(r)][static_cast<std::size_t>(gptq.g_idx[at])];
          sum += inputs[static_cast<std::size_t>(r)][at] * weight;
          // Half a step of the activation each; then float's own rounding of sums that are as large as the largest code
          // (the codes are unsigned) times the inputs.
          error += 0.5 * top / limit * std::abs(weight);
          const double scale =
              static_cast<double>(gptq.scales[static_cast<std::size_t>(gptq.g_idx[at] * gptq.out_features + n)]);
          size += std::abs(inputs[static_cast<std::size_t>(r)][at]) * scale * (1 << gptq.bits);
        }
        y[static_cast<std::size_t>(r * gptq.out_features + n)] = sum;
        bound[static_cast<std::size_t>(r * gptq.out_features + n)] = error + size * 0x1p-21 + std::abs(sum) * 0x1p-22;
      }
    }
  }

  /// sum over k of |x W| of one part, [rows, out].
  std::vector<double> absolute_sums(std::size_t part, const std::vector<float>& x, std::int64_t rows) const {
    const GptqTensors& gptq = gptq_[part];
    std::vector<double> sums(static_cast<std::size_t>(rows * gptq.out_features));
    std::vector<float> w(static_cast<std::size_t>(gptq.in_features));
    std::vector<std::vector<double>> inputs;
    inputs.reserve(static_cast<std::size_t>(rows));
    for (std::int64_t r = 0; r < rows; ++r)
      inputs.push_back(normalised(x.data() + r * gptq.in_features, gptq.in_features));
    for (std::int64_t n = 0; n < gptq.out_features; ++n) {
      gptq.dequantize_row(n, w.data());
      for (std::int64_t r = 0; r < rows; ++r) {
        double& sum = sums[static_cast<std::size_t>(r * gptq.out_features + n)];
        for (std::size_t i = 0; i < w.size(); ++i)
          sum += std::abs(inputs[static_cast<std::size_t>(r)][i] * static_cast<double>(w[i]));
      }
    }
    return sums;
  }

 private:
  static constexpr std::int64_t kGap = 3;

  std::vector<double> normalised(const float* x, std::int64_t k) const {
    std::vector<double> out(x, x + k);
    if (norm_weight_.empty()) return out;
    double squares = 0;
    for (const double v : out) squares += v * v;
    const double factor = 1 / std::sqrt(squares / static_cast<double>(k) + static_cast<double>(site_.prologue.eps));
    for (std::size_t i = 0; i < out.size(); ++i) out[i] *= factor * static_cast<double>(norm_weight_[i]);
    return out;
  }

  void add_part(const PackedCase& c, const std::vector<std::int32_t>& g_idx, std::int64_t group, std::int64_t outputs,
                std::size_t index) {
    GptqTensors gptq;
    gptq.name = "part" + std::to_string(index);
    gptq.bits = c.bits;
    gptq.in_features = c.inputs;
    gptq.out_features = outputs;
    gptq.group_size = group;
    gptq.groups = ceil_div(c.inputs, group);
    gptq.sym = c.symmetric;
    gptq.act_order = c.act_order;
    gptq.g_idx = g_idx;
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(c.inputs * outputs));
    for (auto& code : codes) code = static_cast<std::uint8_t>(random_() % (1u << c.bits));
    auto words = std::make_shared<std::vector<std::uint32_t>>(
        static_cast<std::size_t>(packed_words(c.inputs, c.bits) * outputs));
    pack_columns(codes, c.inputs, outputs, c.bits, *words);
    gptq.qweight_copy = words;
    gptq.qweight = *words;
    gptq.qweight_columns = outputs;
    for (std::int64_t i = 0; i < gptq.groups * outputs; ++i) {
      const float scale = uniform(0.001f, 0.02f);
      gptq.scales.push_back(c.wide_scales ? scale : half_to_float(float_to_half(scale)));
      gptq.zeros.push_back(static_cast<std::uint16_t>(c.symmetric ? 1u << (c.bits - 1) : random_() % (1u << c.bits)));
    }
    if (c.bias) {
      for (std::int64_t n = 0; n < outputs; ++n) gptq.bias.push_back(uniform(-1, 1));
    }
    site_.parts.push_back({gptq.name, c.inputs, outputs, c.bias, GptqFormat{c.bits, group, c.act_order, c.symmetric}});
    gptq_.push_back(std::move(gptq));
  }

  std::mt19937 random_;
  LinearSite site_;
  std::deque<GptqTensors> gptq_;
  std::vector<LinearTensors> tensors_;
  std::vector<float> norm_weight_;
};

}  // namespace nibble::test
