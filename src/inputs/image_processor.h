// From an image to what a model of images takes, as the preprocessor_config.json beside it says.
#pragma once

#include "formats/json.h"
#include "inputs/image.h"
#include "inputs/resize.h"

#include <array>
#include <filesystem>
#include <optional>
#include <vector>

namespace nibble {

/// Pixels of a model: channels are planes, values floats.
struct Pixels {
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::vector<float> values;  // [3, height, width]
};

/// Resizes, crops the middle out, rescales and normalises, each where the config says so, as transformers' processors
/// of ViT, DeiT and CLIP do.
class ImageProcessor {
 public:
  /// Reads a preprocessor_config.json. Fields that it leaves out are those of its image_processor_type (or the older
  /// feature_extractor_type). Error for other types, and for fields that ask for something else.
  explicit ImageProcessor(const JsonView& config);

  /// Reads the preprocessor_config.json of a folder.
  static ImageProcessor read(const std::filesystem::path& folder);

  /// Error where the image would be resized to more than kMaxImagePixels.
  Pixels process(const Image& image) const;

 private:
  struct Size {
    std::int64_t width = 0, height = 0;
  };
  void read_size(const JsonView& config);
  Size resized(const Image& image) const;

  bool resizes_ = true;
  Resample resample_ = Resample::bilinear;
  std::optional<std::int64_t> shortest_edge_;  // keeps the proportions; else:
  Size size_;
  std::optional<Size> crop_;
  std::array<std::array<float, 256>, 3> values_ = {};  // what becomes of each 8-bit value of each channel
};

}  // namespace nibble
