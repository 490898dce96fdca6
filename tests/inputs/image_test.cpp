// Decoding, resizing and processing of images against Pillow and transformers, and files that are not what they say.
#include "inputs/image.h"

#include "core/error.h"
#include "core/file.h"
#include "core/tensor.h"
#include "formats/safetensors.h"
#include "inputs/image_processor.h"
#include "inputs/orientation.h"
#include "inputs/resize.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

namespace nibble {
namespace {

namespace fs = std::filesystem;

fs::path images() { return fs::path(NIBBLE_TEST_DATA) / "images"; }
const SafetensorsFile& golden() {
  static const SafetensorsFile file(images() / "images.golden.safetensors");
  return file;
}

std::vector<std::string> golden_names(std::string_view before) {
  std::vector<std::string> out;
  for (const auto& [name, tensor] : golden().header().tensors) {
    if (name.starts_with(before)) out.push_back(name.substr(before.size()));
  }
  EXPECT_FALSE(out.empty());
  return out;
}

// The largest difference of two pixels; 256 where the sizes differ.
int difference(const Image& image, const TensorView& expected) {
  if (expected.shape != Shape{image.height, image.width, 3}) return 256;
  int worst = 0;
  for (std::size_t i = 0; i < image.rgb.size(); ++i)
    worst = std::max(worst, std::abs(image.rgb[i] - static_cast<int>(expected.bytes[i])));
  return worst;
}

std::vector<std::byte> bytes_of(const std::string& name) {
  const std::string text = read_text_file(images() / name, 1 << 20);
  const std::span<const std::byte> bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

TEST(Image, DecodesAsPillowDoes) {
  for (const std::string& name : golden_names("rgb/")) {
    SCOPED_TRACE(name);
    // Versions of the JPEG library may differ by a rounding; PNG has none.
    EXPECT_LE(difference(read_image(images() / name), *golden().find("rgb/" + name)), name.ends_with(".jpg") ? 2 : 0);
  }
}

TEST(Image, ResizesAsPillowDoes) {
  for (const auto& [kind, resample] : {std::pair{"bilinear/", Resample::bilinear}, {"bicubic/", Resample::bicubic}}) {
    for (const std::string& name : golden_names(kind)) {
      SCOPED_TRACE(kind + name);
      const TensorView expected = *golden().find(kind + name);
      const Image image = read_image(images() / name.substr(0, name.find('/')));
      EXPECT_EQ(difference(resize(image, expected.shape[1], expected.shape[0], resample), expected), 0);
    }
  }
  const Image image = read_image(images() / "photo.png");
  EXPECT_EQ(resize(image, image.width, image.height, Resample::bicubic).rgb, image.rgb);
  test::expect_error("resized to 20000 x 20000", [&] { resize(image, 20000, 20000, Resample::bilinear); });
  test::expect_error("resized to 0 x 5", [&] { resize(image, 0, 5, Resample::bilinear); });
}

TEST(ImageProcessor, GivesWhatTransformersGives) {
  for (const char* folder : {"vit", "deit", "clip", "wide_crop"}) {
    const ImageProcessor processor = ImageProcessor::read(images() / folder);
    for (const std::string& name : golden_names(std::string(folder) + "/")) {
      SCOPED_TRACE(std::string(folder) + "/" + name);
      const TensorView expected = *golden().find(std::string(folder) + "/" + name);
      const Pixels pixels = processor.process(read_image(images() / name));
      ASSERT_EQ((Shape{3, pixels.height, pixels.width}), expected.shape);
      const std::vector<float> values = to_float(expected);
      // A JPEG's rounding may move a pixel by one step of 1 / 255, divided by the deviation.
      const float tolerance = name.ends_with(".jpg") ? (std::string_view(folder) == "wide_crop" ? 1 : 0.02F) : 1e-6F;
      for (std::size_t i = 0; i < values.size(); ++i) ASSERT_NEAR(pixels.values[i], values[i], tolerance) << i;
    }
  }
}

ImageProcessor processor_of(const std::string& config) {
  const nlohmann::json json = parse_json(config, "preprocessor_config.json");
  return ImageProcessor(JsonView(json, "preprocessor_config.json"));
}

TEST(ImageProcessor, ReadsTheSizesOfEachKind) {
  const Image image = read_image(images() / "photo.jpg");  // 45 x 34
  const auto size = [&](const std::string& config) {
    const Pixels pixels = processor_of(config).process(image);
    return std::pair(pixels.width, pixels.height);
  };
  EXPECT_EQ(size("{}"), std::pair(std::int64_t{224}, std::int64_t{224}));
  EXPECT_EQ(size(R"({"feature_extractor_type": "DeiTFeatureExtractor"})"),
            std::pair(std::int64_t{224}, std::int64_t{224}));
  EXPECT_EQ(size(R"({"image_processor_type": "CLIPImageProcessor", "size": 17, "do_center_crop": false})"),
            std::pair(std::int64_t{22}, std::int64_t{17}));
  EXPECT_EQ(size(R"({"image_processor_type": "ViTImageProcessorFast", "size": {"height": 5, "width": 6}})"),
            std::pair(std::int64_t{6}, std::int64_t{5}));
  EXPECT_EQ(size(R"({"do_resize": false})"), std::pair(std::int64_t{45}, std::int64_t{34}));
}

TEST(ImageProcessor, RefusesWithASentence) {
  test::expect_error("that of a ViT, a DeiT or a CLIP",
                     [] { processor_of(R"({"image_processor_type": "SegformerImageProcessor"})"); });
  test::expect_error("resample should be 2 (bilinear) or 3", [] { processor_of(R"({"resample": 0})"); });
  test::expect_error("longest_edge", [] { processor_of(R"({"size": {"longest_edge": 5}})"); });
  test::expect_error("image_mean", [] { processor_of(R"({"image_mean": [1, 2]})"); });
  test::expect_error("image_std", [] { processor_of(R"({"image_std": [1, 0, 1]})"); });
  test::expect_error("crop_size", [] { processor_of(R"({"do_center_crop": true})"); });
  test::expect_error("at most 65535", [] { processor_of(R"({"size": 1000000})"); });
  Image line;
  line.width = 1;
  line.height = 60000;
  line.rgb.resize(180000);
  const ImageProcessor clip = processor_of(R"({"image_processor_type": "CLIPImageProcessor"})");
  test::expect_error("resized to 224 x 13440000", [&] { (void)clip.process(line); });
}

TEST(Image, HostileFilesAreRefusedWithASentence) {
  test::expect_error("neither a JPEG nor a PNG", [] { (void)decode_image({}, "x"); });
  const std::string text = "GIF89a and so on";
  test::expect_error("x: 16 bytes that are neither", [&] { (void)decode_image(std::as_bytes(std::span(text)), "x"); });
  // Cut anywhere, a file is refused, or it lacks nothing but its end mark.
  for (const char* name : {"photo.jpg", "progressive.jpg", "cmyk.jpg", "photo.png", "palette_transparent.png"}) {
    SCOPED_TRACE(name);
    const std::vector<std::byte> whole = bytes_of(name);
    const bool jpeg = std::string_view(name).ends_with(".jpg");
    for (std::size_t size = 0; size + 2 < whole.size(); size += 7) {
      EXPECT_THROW((void)decode_image(std::span(whole).first(size), "cut"), Error) << size;
    }
    test::expect_error(jpeg ? "the JPEG image cannot be read: " : "the PNG image cannot be read: ",
                       [&] { (void)decode_image(std::span(whole).first(whole.size() / 2), "cut"); });
    // Any byte may be wrong: an image or a sentence comes back.
    int refused = 0;
    for (std::size_t at = 8; at < whole.size(); at += 5) {
      std::vector<std::byte> damaged = whole;
      damaged[at] ^= std::byte{0x55};
      try {
        (void)decode_image(damaged, "damaged");
      } catch (const Error&) {
        ++refused;
      }
    }
    EXPECT_GT(refused, 0);
  }
}

TEST(Image, SizesAreLimited) {
  // A JPEG's frame header holds height and width behind the mark, the length and the precision.
  std::vector<std::byte> jpeg = bytes_of("photo.jpg");
  const std::vector<std::byte> mark = {std::byte{0xFF}, std::byte{0xC0}};
  const auto frame = std::search(jpeg.begin(), jpeg.end(), mark.begin(), mark.end());
  ASSERT_NE(frame, jpeg.end());
  for (int i = 0; i < 4; ++i) frame[5 + i] = std::byte{0x7F};
  test::expect_error("32639 x 32639 pixels is out of range", [&] { (void)decode_image(jpeg, "large"); });
  // A PNG's header has a checksum, so a changed one is damage already.
  std::vector<std::byte> png = bytes_of("photo.png");
  png[16] = std::byte{0x7F};
  EXPECT_THROW((void)decode_image(png, "large"), Error);
}

// photo.jpg with an Exif segment that says this orientation, its numbers in either order of bytes.
std::vector<std::byte> marked(int orientation, bool little) {
  const auto number = [&](int value, int size) {
    std::string out;
    for (int i = 0; i < size; ++i) out += static_cast<char>(value >> 8 * (little ? i : size - 1 - i) & 0xFF);
    return out;
  };
  std::string exif("Exif\0\0", 6);
  exif += (little ? "II" : "MM") + number(42, 2) + number(8, 4) + number(2, 2);
  exif += number(0x0100, 2) + number(4, 2) + number(1, 4) + number(45, 4);
  exif += number(0x0112, 2) + number(3, 2) + number(1, 4) + number(orientation, 2) + number(0, 2) + number(0, 4);
  const std::size_t length = exif.size() + 2;
  const std::string segment =
      std::string("\xFF\xE1", 2) + static_cast<char>(length >> 8) + static_cast<char>(length & 0xFF) + exif;
  std::vector<std::byte> file = bytes_of("photo.jpg");
  const std::span<const std::byte> bytes = std::as_bytes(std::span(segment));
  file.insert(file.begin() + 2, bytes.begin(), bytes.end());
  return file;
}

TEST(Image, IsTurnedAsItsCameraSays) {
  const Image plain = read_image(images() / "photo.jpg");
  const int w = static_cast<int>(plain.width) - 1;
  const int h = static_cast<int>(plain.height) - 1;
  // Where in the file the picture's upper left pixel is, and the one to its right.
  const std::array<std::array<int, 4>, 8> places = {{{0, 0, 1, 0},
                                                     {w, 0, w - 1, 0},
                                                     {w, h, w - 1, h},
                                                     {0, h, 1, h},
                                                     {0, 0, 0, 1},
                                                     {0, h, 0, h - 1},
                                                     {w, h, w, h - 1},
                                                     {w, 0, w, 1}}};
  for (int orientation = 1; orientation <= 8; ++orientation) {
    for (const bool little : {false, true}) {
      SCOPED_TRACE(testing::Message() << orientation << (little ? " little" : " big"));
      const Image image = decode_image(marked(orientation, little), "marked");
      EXPECT_EQ(image.width, orientation < 5 ? plain.width : plain.height);
      EXPECT_EQ(image.height, orientation < 5 ? plain.height : plain.width);
      const std::array<int, 4>& at = places[static_cast<std::size_t>(orientation - 1)];
      for (std::size_t c = 0; c < 3; ++c) {
        EXPECT_EQ(image.rgb[c], plain.rgb[static_cast<std::size_t>(at[1] * (w + 1) + at[0]) * 3 + c]);
        EXPECT_EQ(image.rgb[3 + c], plain.rgb[static_cast<std::size_t>(at[3] * (w + 1) + at[2]) * 3 + c]);
      }
    }
  }
  for (const int none : {0, 9, 255}) EXPECT_EQ(decode_image(marked(none, true), "marked").rgb, plain.rgb);
}

TEST(Image, DamagedMarksOfCamerasAreNoMarks) {
  const Image plain = read_image(images() / "photo.jpg");
  const std::vector<std::byte> whole = marked(6, true);
  // Everything behind "Exif": the header, the directory's place, its count, its entries.
  for (std::size_t i = 12; i < 12 + 8 + 2 + 24; ++i) {
    for (const int value : {0x00, 0x7F, 0xFF}) {
      std::vector<std::byte> damaged = whole;
      damaged[i] = static_cast<std::byte>(value);
      const Image image = decode_image(damaged, "damaged");
      EXPECT_EQ(image.rgb.size(), plain.rgb.size());
    }
  }
  for (std::size_t size = 0; size < 46; ++size)
    EXPECT_NO_THROW((void)exif_orientation(std::span(whole).subspan(6, size)));
}

TEST(Image, AFileThatIsNotThereIsNamed) {
  test::expect_error("nowhere.png", [] { (void)read_image(images() / "nowhere.png"); });
}

}  // namespace
}  // namespace nibble
