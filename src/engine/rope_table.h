// Cosines and sines of rotary positions in device memory.
#pragma once

#include "core/device.h"
#include "models/program.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace nibble {

/// [positions, dims] floats: dims / 2 cosines, then dims / 2 sines, of float(position) * inv_freq, as transformers
/// computes them in float32, times the attention factor.
class RopeTable {
 public:
  RopeTable() = default;
  RopeTable(const RotarySpec& spec, std::int64_t positions, Device& device, Stream& stream);

  const float* data() const { return buffer_ ? reinterpret_cast<const float*>(buffer_->data()) : nullptr; }

  /// With rope_type "dynamic", the rotations of a prompt depend on its whole length: rows [0, tokens) are set for it.
  void for_prompt(std::int64_t tokens, Stream& stream);
  /// Each later token is rotated for the length that it makes: row p for p + 1 tokens. Undoes for_prompt().
  void for_steps(Stream& stream);

 private:
  void fill_row(std::int64_t position, const std::vector<float>& inv_freq);

  RotarySpec spec_;
  std::int64_t positions_ = 0;
  std::int64_t changed_ = 0;  // rows [0, changed_) hold a prompt's rotations
  std::vector<float> host_;
  std::unique_ptr<Buffer> buffer_;
};

}  // namespace nibble
