#include "inputs/image_processor.h"

#include "core/error.h"

#include <nlohmann/json.hpp>

#include <string>
#include <string_view>

namespace nibble {
namespace {

using Channels = std::array<double, 3>;

// What a kind of processor does where the config says nothing.
struct Kind {
  std::string_view name;  // what the type begins with
  std::int64_t size = 0;
  bool keeps_proportions = false;  // one number for a size is the shorter side's
  std::optional<std::int64_t> crop;
  Resample resample = Resample::bilinear;
  Channels mean, deviation;
};

constexpr Channels kHalf = {0.5, 0.5, 0.5};
constexpr Channels kClipMean = {0.48145466, 0.4578275, 0.40821073};
constexpr Channels kClipDeviation = {0.26862954, 0.26130258, 0.27577711};
const std::array<Kind, 3> kKinds = {{{"ViT", 224, false, std::nullopt, Resample::bilinear, kHalf, kHalf},
                                     {"DeiT", 256, false, 224, Resample::bicubic, kHalf, kHalf},
                                     {"CLIP", 224, true, 224, Resample::bicubic, kClipMean, kClipDeviation}}};

const Kind& kind_of(const JsonView& config) {
  std::string_view key = "image_processor_type";
  if (!config.has(key)) key = "feature_extractor_type";
  const std::string type = config.text(key, "ViTFeatureExtractor");
  for (const Kind& kind : kKinds) {
    if (type.starts_with(std::string(kind.name) + "ImageProcessor") ||
        type == std::string(kind.name) + "FeatureExtractor")
      return kind;
  }
  config.refuse(key, "that of a ViT, a DeiT or a CLIP image processor");
}

Channels channels(const JsonView& config, std::string_view key, const Channels& fallback) {
  if (!config.has(key)) return fallback;
  if (config.value().at(key).is_number()) {
    const double all = config.number(key);
    return {all, all, all};
  }
  const std::vector<double> list = config.numbers(key);
  if (list.size() != 3) config.refuse(key, "a number, or a list of one for each of red, green and blue");
  return {list[0], list[1], list[2]};
}

std::int64_t side(const JsonView& config, std::string_view key) {
  const std::int64_t value = config.positive(key);
  if (value > kMaxImageSide) config.refuse(key, "at most 65535");
  return value;
}

}  // namespace

ImageProcessor::ImageProcessor(const JsonView& config) {
  const Kind& kind = kind_of(config);
  resizes_ = config.boolean("do_resize", true);
  const std::int64_t resample = config.integer("resample", static_cast<std::int64_t>(kind.resample));
  if (resample != 2 && resample != 3) config.refuse("resample", "2 (bilinear) or 3 (bicubic)");
  resample_ = static_cast<Resample>(resample);
  size_ = {kind.size, kind.size};
  if (kind.keeps_proportions) shortest_edge_ = kind.size;
  if (config.has("size")) read_size(config);
  if (config.boolean("do_center_crop", kind.crop.has_value())) {
    // Without a default there is nothing to crop to but what the config says.
    std::optional<JsonView> crop;
    if (config.has("crop_size") && config.value().at("crop_size").is_object()) crop = config.object("crop_size");
    if (crop) {
      crop_ = {side(*crop, "width"), side(*crop, "height")};
    } else {
      const std::int64_t length = config.has("crop_size") || !kind.crop ? side(config, "crop_size") : *kind.crop;
      crop_ = {length, length};
    }
    if (crop_->width > kMaxImagePixels / crop_->height) config.refuse("crop_size", "at most 100000000 pixels");
  }
  if (config.boolean("do_pad", false)) config.refuse("do_pad", "false");

  const bool rescales = config.boolean("do_rescale", true);
  const double factor = rescales ? config.number("rescale_factor", 1.0 / 255) : 1;
  const bool normalises = config.boolean("do_normalize", true);
  const Channels mean = channels(config, "image_mean", kind.mean);
  const Channels deviation = channels(config, "image_std", kind.deviation);
  for (std::size_t c = 0; c < 3; ++c) {
    if (normalises && deviation[c] == 0) config.refuse("image_std", "other than 0, by which values are divided");
    for (std::size_t i = 0; i < 256; ++i) {
      float value = static_cast<float>(static_cast<double>(i) * factor);
      if (normalises) value = (value - static_cast<float>(mean[c])) / static_cast<float>(deviation[c]);
      values_[c][i] = value;
    }
  }
}

void ImageProcessor::read_size(const JsonView& config) {
  if (!config.value().at("size").is_object()) {
    const std::int64_t length = side(config, "size");
    if (shortest_edge_) shortest_edge_ = length;
    size_ = {length, length};
    return;
  }
  const JsonView size = *config.object("size");
  if (size.has("longest_edge")) size.refuse("longest_edge", "left out: sizes are width and height, or shortest_edge");
  shortest_edge_.reset();
  if (size.has("shortest_edge")) {
    shortest_edge_ = side(size, "shortest_edge");
  } else {
    size_ = {side(size, "width"), side(size, "height")};
  }
}

ImageProcessor ImageProcessor::read(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "preprocessor_config.json";
  const nlohmann::json config = read_json_file(path);
  return ImageProcessor(JsonView(config, path.string()));
}

ImageProcessor::Size ImageProcessor::resized(const Image& image) const {
  if (!resizes_) return {image.width, image.height};
  if (!shortest_edge_) return size_;
  if (image.width <= image.height) return {*shortest_edge_, *shortest_edge_ * image.height / image.width};
  return {*shortest_edge_ * image.width / image.height, *shortest_edge_};
}

Pixels ImageProcessor::process(const Image& image) const {
  const Size size = resized(image);
  const bool same = size.width == image.width && size.height == image.height;
  const Image changed = same ? Image() : resize(image, size.width, size.height, resample_);
  const Image& from = same ? image : changed;
  const Size out = crop_.value_or(size);
  // Where the crop is larger than the image, black surrounds it.
  const auto begin = [](std::int64_t whole, std::int64_t part) {
    return part > whole ? -((part - whole + 1) / 2) : (whole - part) / 2;
  };
  const std::int64_t top = begin(from.height, out.height);
  const std::int64_t left = begin(from.width, out.width);
  Pixels pixels{out.height, out.width, {}};
  pixels.values.reserve(static_cast<std::size_t>(3 * out.height * out.width));
  for (std::size_t c = 0; c < 3; ++c) {
    for (std::int64_t y = top; y < top + out.height; ++y) {
      for (std::int64_t x = left; x < left + out.width; ++x) {
        const bool inside = y >= 0 && y < from.height && x >= 0 && x < from.width;
        const std::uint8_t value = inside ? from.rgb[static_cast<std::size_t>((y * from.width + x) * 3) + c] : 0;
        pixels.values.push_back(values_[c][value]);
      }
    }
  }
  return pixels;
}

}  // namespace nibble
