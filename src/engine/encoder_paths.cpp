// The names of an encoder's paths, what they compute in, and how their results are compared.
#include "core/error.h"
#include "engine/encoder.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nibble {

std::string_view name_of(EncoderPath path) { return path == EncoderPath::eager ? "eager" : "fast"; }

EncoderPath encoder_path_named(std::string_view name) {
  if (name == "eager") return EncoderPath::eager;
  if (name == "fast") return EncoderPath::fast;
  fail_usage("there is no path \"{}\": expected eager or fast", name);
}

DType default_compute(const Checkpoint& checkpoint, const Program& program, DeviceKind device) {
  const DType stored = checkpoint.tensor(first_tensor_of(program)).dtype;
  if (stored == DType::f32 || stored == DType::f64) return DType::f32;
  return device == DeviceKind::cuda ? stored : DType::bf16;
}

double largest_difference(const EncoderBatch& batch, std::span<const float> a, std::span<const float> b) {
  const auto cells = static_cast<std::size_t>(batch.sequences * batch.length);
  if (a.size() != b.size() || cells == 0 || a.size() % cells != 0)
    fail("results of {} and {} values were compared for a batch of {} rows", a.size(), b.size(), cells);
  const std::size_t width = a.size() / cells;
  double worst = 0;
  double largest = 0;
  for (std::int64_t s = 0; s < batch.sequences; ++s) {
    const std::size_t first = static_cast<std::size_t>(s * batch.length) * width;
    const std::size_t count = static_cast<std::size_t>(batch.lengths[static_cast<std::size_t>(s)]) * width;
    for (std::size_t i = first; i < first + count; ++i) {
      const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
      if (std::isnan(difference)) return std::numeric_limits<double>::infinity();
      worst = std::max(worst, difference);
      largest = std::max(largest, std::abs(static_cast<double>(b[i])));
    }
  }
  return largest > 0 ? worst / largest : worst;
}

}  // namespace nibble
