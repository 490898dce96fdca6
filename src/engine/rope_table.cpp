#include "engine/rope_table.h"

#include <cmath>

namespace nibble {

RopeTable::RopeTable(const RotarySpec& spec, std::int64_t positions, Device& device, Stream& stream)
    : spec_(spec), positions_(positions) {
  if (spec_.dims == 0) return;
  host_.resize(static_cast<std::size_t>(positions * spec_.dims));
  buffer_ = device.allocate(host_.size() * sizeof(float), "the table of rotations");
  for (std::int64_t p = 0; p < positions; ++p) fill_row(p, spec_.inv_freq_for(p + 1));
  stream.copy_to_device(buffer_->data(), host_.data(), host_.size() * sizeof(float));
  stream.synchronize();
}

void RopeTable::fill_row(std::int64_t position, const std::vector<float>& inv_freq) {
  float* row = host_.data() + position * spec_.dims;
  const std::int64_t half = spec_.dims / 2;
  for (std::int64_t i = 0; i < half; ++i) {
    const float angle = static_cast<float>(position) * inv_freq[static_cast<std::size_t>(i)];
    row[i] = static_cast<float>(std::cos(static_cast<double>(angle))) * spec_.attention_factor;
    row[half + i] = static_cast<float>(std::sin(static_cast<double>(angle))) * spec_.attention_factor;
  }
}

void RopeTable::for_prompt(std::int64_t tokens, Stream& stream) {
  if (spec_.dims == 0 || spec_.dynamic_after == 0 || tokens <= spec_.dynamic_after) return;
  const std::vector<float> inv_freq = spec_.inv_freq_for(tokens);
  for (std::int64_t p = 0; p < tokens; ++p) fill_row(p, inv_freq);
  changed_ = tokens;
  stream.copy_to_device(buffer_->data(), host_.data(), static_cast<std::size_t>(tokens * spec_.dims) * sizeof(float));
}

void RopeTable::for_steps(Stream& stream) {
  if (changed_ == 0) return;
  for (std::int64_t p = 0; p < changed_; ++p) fill_row(p, spec_.inv_freq_for(p + 1));
  stream.copy_to_device(buffer_->data(), host_.data(), static_cast<std::size_t>(changed_ * spec_.dims) * sizeof(float));
  changed_ = 0;
}

}  // namespace nibble
