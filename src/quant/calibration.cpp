#include "quant/calibration.h"

#include "core/error.h"
#include "core/file.h"
#include "quant/random.h"

#include <algorithm>
#include <string_view>

namespace nibble {

std::vector<std::vector<std::int32_t>> calibration_windows(const std::vector<std::int32_t>& ids,
                                                           const CalibrationOptions& options) {
  if (options.samples < 1 || options.sequence_length < 1) {
    fail_usage("calibration needs at least 1 sample of at least 1 token, not {} of {}", options.samples,
               options.sequence_length);
  }
  if (ids.size() < kCalibrationLeast) {
    fail("{} has {} tokens; calibration needs at least {}, and gets better with thousands", options.text.string(),
         ids.size(), kCalibrationLeast);
  }
  const auto total = static_cast<std::int64_t>(ids.size());
  if (total <= options.sequence_length) return {ids};
  const std::int64_t places = total - options.sequence_length + 1;  // where a window can start
  std::vector<std::vector<std::int32_t>> out;
  for (std::int64_t i = 0; i < options.samples; ++i) {
    const std::int64_t begin = places * i / options.samples;
    const std::int64_t stretch = std::max<std::int64_t>(1, places * (i + 1) / options.samples - begin);
    const auto drawn = static_cast<std::int64_t>(random_bits(options.seed, 0, static_cast<std::uint64_t>(i)) %
                                                 static_cast<std::uint64_t>(stretch));
    const auto start = ids.begin() + begin + drawn;
    out.emplace_back(start, start + options.sequence_length);
  }
  return out;
}

std::vector<std::vector<std::int32_t>> calibration_windows(const Tokenizer& tokenizer,
                                                           const CalibrationOptions& options) {
  const MappedFile file(options.text);
  const std::size_t bytes = std::min(file.bytes().size(), kCalibrationBytes);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), bytes);
  return calibration_windows(tokenizer.encode(text, false), options);
}

}  // namespace nibble
