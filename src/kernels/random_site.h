// Linear sites with random weights, for tests, verification and benchmarks that need no model.
#pragma once

#include "kernels/linear_kernel.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace nibble {

/// Random numbers that are the same on every machine and library: SplitMix64 (Steele, Lea, Flood 2014).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next();
  /// Uniform in [0, n), n > 0.
  std::int64_t below(std::int64_t n);
  /// Uniform in [0, 1).
  double uniform();
  /// Of mean 0 and standard deviation 1, at most 4 in magnitude: a triangle of uniforms is near enough to a bell.
  float normal();

 private:
  std::uint64_t state_;
};

struct RandomSiteOptions {
  std::int64_t in_features = 64;
  std::vector<std::int64_t> out_features = {64};  // one a part
  bool bias = false;
  std::optional<GptqFormat> gptq = {};  // group_size -1: one group
  DType weights = DType::f32;           // of full-precision parts: f32, f16 or bf16
  DType compute = DType::f32;
  DType x_dtype = DType::f32;
  DType y_dtype = DType::f32;
  Prologue prologue = {};
  Epilogue epilogue = {};
  std::uint64_t seed = 1;
  // False: weights() are not to be had, which makes large quantised sites in a small part of the time.
  bool keep_weights = true;
};

/// A site and its checkpoint tensors. GPTQ parts have every code and zero point, scales
/// (exact in f16) over three decades, and, with act_order, one random assignment of inputs to groups for all parts.
class RandomSite {
 public:
  explicit RandomSite(const RandomSiteOptions& options);

  const LinearSite& site() const { return site_; }
  /// One a part, valid while this object lives.
  const std::vector<LinearTensors>& tensors() const { return tensors_; }
  /// What the tensors mean, [out_features, in_features] of one part, computed before they were packed; only with
  /// keep_weights.
  std::span<const float> weights(std::size_t part) const { return weights_[part]; }

 private:
  void add_dense(const RandomSiteOptions& options, std::int64_t outputs, Random& random);
  void add_gptq(const RandomSiteOptions& options, std::int64_t outputs, const std::vector<std::int32_t>& g_idx,
                Random& random);

  LinearSite site_;
  std::vector<Tensor> dense_;
  std::vector<Tensor> biases_;
  std::vector<GptqTensors> gptq_;
  std::vector<LinearTensors> tensors_;
  std::vector<std::vector<float>> weights_;
};

}  // namespace nibble
