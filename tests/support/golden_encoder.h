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

/// Names of all fixtures of text encoders, sorted.
inline std::vector<std::string> golden_encoder_names() {
  std::vector<std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(golden_encoders())) {
    if (!entry.is_directory()) continue;
    const std::string name = entry.path().filename().string();
    const SafetensorsFile file(golden_encoders() / (name + ".golden.safetensors"));
    if (file.find("ids") != nullptr && file.find("hidden") != nullptr) out.push_back(name);
  }
  std::sort(out.begin(), out.end());
  return out;
}

inline GoldenEncoder read_golden_encoder(const std::string& name) {
  GoldenEncoder golden;
  golden.folder = golden_encoders() / name;
  const SafetensorsFile file(golden_encoders() / (name + ".golden.safetensors"));
  const TensorView ids = *file.find("ids");
  golden.sequences = ids.shape[0];
  golden.length = ids.shape[1];
  golden.ids = ints_of(ids);
  golden.lengths = ints_of(*file.find("lengths"));
  if (const TensorView* types = file.find("types")) golden.types = ints_of(*types);
  golden.hidden = to_float(*file.find("hidden"));
  if (const TensorView* logits = file.find("logits")) {
    golden.head = to_float(*logits);
  } else if (const TensorView* pooled = file.find("pooled")) {
    golden.head = to_float(*pooled);
  }
  return golden;
}

}  // namespace nibble::test
