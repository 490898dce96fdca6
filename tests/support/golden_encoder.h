// The golden fixtures of encoders: small random models and what transformers computes with them.
#pragma once

#include "formats/checkpoint.h"
#include "formats/safetensors.h"
#include "support/golden.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace nibble::test {

struct GoldenEncoder {
  std::filesystem::path folder;
  std::int64_t sequences = 0;
  std::int64_t length = 0;
  std::vector<std::int32_t> ids, lengths, types;
  std::vector<float> hidden;  // [sequences, length, hidden]
  std::vector<float> head;    // logits, or the pooled vectors; empty where the model has no head
};

inline std::filesystem::path golden_encoders() { return std::filesystem::path(NIBBLE_TEST_DATA) / "golden_encoders"; }

struct GoldenImages {
  std::filesystem::path folder;
  std::int64_t images = 0, channels = 0, height = 0, width = 0;
  std::vector<float> pixels;  // [images, channels, height, width]
  std::vector<float> hidden;  // [images, rows, hidden]; empty where the fixture has none
  std::vector<float> head;    // as GoldenEncoder's
};

/// Names of all fixtures whose golden file has an input of this name and a hidden state, sorted.
inline std::vector<std::string> golden_names_with(const char* input) {
  std::vector<std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(golden_encoders())) {
    if (!entry.is_directory()) continue;
    const std::string name = entry.path().filename().string();
    const SafetensorsFile file(golden_encoders() / (name + ".golden.safetensors"));
    if (file.find(input) != nullptr && file.find("hidden") != nullptr) out.push_back(name);
  }
  std::sort(out.begin(), out.end());
  return out;
}

/// Names of all fixtures of text encoders, and of those of images.
inline std::vector<std::string> golden_encoder_names() { return golden_names_with("ids"); }
inline std::vector<std::string> golden_image_names() { return golden_names_with("pixels"); }

/// What the head gives: logits, or the pooled vectors.
inline std::vector<float> golden_head(const SafetensorsFile& file) {
  for (const char* name : {"logits", "pooled"}) {
    if (const TensorView* tensor = file.find(name)) return to_float(*tensor);
  }
  return {};
}

/// The inputs alone.
inline GoldenEncoder read_golden_tokens(const std::string& name) {
  GoldenEncoder golden;
  golden.folder = golden_encoders() / name;
  const SafetensorsFile file(golden_encoders() / (name + ".golden.safetensors"));
  const TensorView ids = *file.find("ids");
  golden.sequences = ids.shape[0];
  golden.length = ids.shape[1];
  golden.ids = ints_of(ids);
  golden.lengths = ints_of(*file.find("lengths"));
  if (const TensorView* types = file.find("types")) golden.types = ints_of(*types);
  return golden;
}

inline GoldenEncoder read_golden_encoder(const std::string& name) {
  GoldenEncoder golden = read_golden_tokens(name);
  const SafetensorsFile file(golden_encoders() / (name + ".golden.safetensors"));
  golden.hidden = to_float(*file.find("hidden"));
  golden.head = golden_head(file);
  return golden;
}

struct GoldenAudio {
  std::filesystem::path folder;
  std::int64_t recordings = 0, channels = 1, steps = 0;
  std::vector<float> values;          // [recordings, channels, steps]
  std::vector<std::int32_t> lengths;  // empty: all
  std::vector<std::int32_t> frames;   // rows that count
  std::int64_t rows = 0;              // of a recording in `hidden`
  std::vector<float> hidden;          // [recordings, rows, width]
};

inline GoldenAudio read_golden_audio(const std::string& name) {
  GoldenAudio golden;
  golden.folder = golden_encoders() / name;
  const SafetensorsFile file(golden_encoders() / (name + ".golden.safetensors"));
  const TensorView* features = file.find("features");
  const TensorView values = features != nullptr ? *features : *file.find("samples");
  golden.values = to_float(values);
  golden.recordings = values.shape[0];
  if (features != nullptr) golden.channels = values.shape[1];
  golden.steps = values.shape.back();
  golden.hidden = to_float(*file.find("hidden"));
  golden.rows = file.find("hidden")->shape[1];
  if (const TensorView* lengths = file.find("lengths")) {
    golden.lengths = ints_of(*lengths);
    golden.frames = ints_of(*file.find("frames"));
  } else {
    golden.frames.assign(static_cast<std::size_t>(golden.recordings), static_cast<std::int32_t>(golden.rows));
  }
  return golden;
}

inline GoldenImages read_golden_images(const std::string& name) {
  GoldenImages golden;
  golden.folder = golden_encoders() / name;
  const SafetensorsFile file(golden_encoders() / (name + ".golden.safetensors"));
  const TensorView pixels = *file.find("pixels");
  golden.images = pixels.shape[0];
  golden.channels = pixels.shape[1];
  golden.height = pixels.shape[2];
  golden.width = pixels.shape[3];
  golden.pixels = to_float(pixels);
  if (const TensorView* hidden = file.find("hidden")) golden.hidden = to_float(*hidden);
  golden.head = golden_head(file);
  return golden;
}

}  // namespace nibble::test
