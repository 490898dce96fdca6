// The weights of a site as `packed` keeps them; isa.h says how they lie.
#pragma once

#include "core/device.h"
#include "kernels/cpu/packed/isa.h"
#include "kernels/linear_kernel.h"

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace nibble::packed {

/// The longest block: kLine with 16-bit activations; 64 with 8-bit ones, whose rounding errors grow with the largest of
/// the values that share a scale.
constexpr int max_block(int planes) { return planes == 2 ? kLine : 64; }

/// The order of a matrix's inputs and its blocks.
struct Plan {
  std::vector<Block> blocks;
  std::vector<std::int32_t> groups;  // of each block
  std::vector<std::int32_t> order;   // sorted order to input; empty where they are the same
  std::int32_t lines = 0;
  std::int32_t steps = 0;
  std::int32_t chunks = 0;  // of all blocks
  bool gaps = false;
  int bits = 0;

  /// g_idx [K]: the group of each input.
  Plan(std::span<const std::int32_t> g_idx, int bits, int planes);
  PlanView view() const;
  friend bool operator==(const Plan&, const Plan&) = default;
};

/// Bytes of one panel.
std::int64_t panel_bytes(std::int64_t blocks, std::int64_t chunks, int bits, bool symmetric, bool wide_scales);

/// A whole site, packed.
class PackedSite final : public PackedLinear {
 public:
  /// Packs on all threads of the pool. Throws Error naming the part where the tensors contradict the site: in their
  /// sizes, or by groups that are not full.
  PackedSite(const LinearSite& site, std::span<const LinearTensors> tensors, int planes, Device& device);
  std::size_t bytes() const override { return bytes_; }

  const LinearSite& site() const { return site_; }
  const std::vector<Matrix>& parts() const { return parts_; }
  const std::vector<Plan>& plans() const { return plans_; }
  std::int64_t pairs() const { return pairs_; }

 private:
  int plan_of(const GptqTensors& gptq, int planes);

  LinearSite site_;
  std::vector<Plan> plans_;
  std::vector<Matrix> parts_;
  std::vector<std::vector<float>> biases_;
  std::unique_ptr<Buffer> codes_;
  std::size_t bytes_ = 0;
  std::int64_t pairs_ = 0;
};

/// The plans that a site's activations may be staged for: one for all parts whose inputs are in order and alike, and
/// one for each part with act-order, whose order may be its own.
std::vector<Plan> possible_plans(const LinearSite& site, int planes);

/// What PackedSite keeps for a site whose scales are exact in f16 and whose groups are full, as files have them.
std::size_t packed_site_bytes(const LinearSite& site, int planes);

}  // namespace nibble::packed
