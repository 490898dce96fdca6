// The golden fixtures: small random models and what transformers computes with them.
#pragma once

#include "formats/checkpoint.h"
#include "formats/safetensors.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace nibble::test {

struct GoldenRow {
  std::vector<std::int32_t> ids;
  std::vector<float> logits;  // [ids, vocab]
  std::vector<std::int32_t> greedy;
};

struct Golden {
  std::string name;
  std::filesystem::path folder;
  std::vector<GoldenRow> rows;
};

inline std::vector<std::int32_t> ints_of(const TensorView& tensor) {
  std::vector<std::int32_t> out(static_cast<std::size_t>(tensor.elements()));
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (tensor.dtype == DType::i64) {
      std::int64_t value;
      std::memcpy(&value, tensor.bytes.data() + i * sizeof value, sizeof value);
      out[i] = static_cast<std::int32_t>(value);
    } else {
      std::memcpy(&out[i], tensor.bytes.data() + i * sizeof(std::int32_t), sizeof(std::int32_t));
    }
  }
  return out;
}

inline std::filesystem::path golden_folder() { return std::filesystem::path(NIBBLE_TEST_DATA) / "golden"; }

/// Names of all fixtures, sorted.
inline std::vector<std::string> golden_names() {
  std::vector<std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(golden_folder())) {
    if (entry.is_directory()) out.push_back(entry.path().filename().string());
  }
  std::sort(out.begin(), out.end());
  return out;
}

inline Golden read_golden(const std::string& name) {
  Golden golden;
  golden.name = name;
  golden.folder = golden_folder() / name;
  const SafetensorsFile file(golden_folder() / (name + ".golden.safetensors"));
  for (const char* row : {"0", "1", "2"}) {
    const std::string prefix = std::string(row) + ".";
    golden.rows.push_back({ints_of(*file.find(prefix + "ids")), to_float(*file.find(prefix + "logits")),
                           ints_of(*file.find(prefix + "greedy"))});
  }
  return golden;
}

}  // namespace nibble::test
