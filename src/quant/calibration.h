// Calibration sequences: windows of a text's tokens.
#pragma once

#include "formats/tokenizer.h"

#include <cstdint>
#include <filesystem>
#include <vector>

namespace nibble {

struct CalibrationOptions {
  std::filesystem::path text;  // a UTF-8 text file
  std::int64_t samples = 32;
  std::int64_t sequence_length = 512;  // tokens
  std::uint64_t seed = 0;
};

/// Tokenises the text without special tokens and cuts `samples` windows of `sequence_length` tokens out of it: the text
/// is divided into as many equal stretches and each gives a window at a place drawn at random (by `seed`), so that all
/// parts of the text are heard and the same seed gives the same windows everywhere. Only the first kCalibrationBytes
/// are read; a text shorter than one window is one shorter sequence. Throws Error where it cannot be read or has less
/// than kCalibrationLeast tokens.
std::vector<std::vector<std::int32_t>> calibration_windows(const Tokenizer& tokenizer,
                                                           const CalibrationOptions& options);

/// The same from token ids.
std::vector<std::vector<std::int32_t>> calibration_windows(const std::vector<std::int32_t>& ids,
                                                           const CalibrationOptions& options);

/// A few seconds of tokenising, and room for 128 windows of 2048 tokens fifteen times over.
inline constexpr std::size_t kCalibrationBytes = std::size_t{16} << 20;
/// Fewer say nothing about any layer.
inline constexpr std::size_t kCalibrationLeast = 32;

}  // namespace nibble
