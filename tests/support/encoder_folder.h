// Folders of encoders for tests: golden models with a vocabulary of their own, and the default encoder.
#pragma once

#include "formats/safetensors.h"
#include "support/golden.h"
#include "support/golden_encoder.h"
#include "support/temp_folder.h"

#include <nlohmann/json.hpp>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::test {

/// "w7": how token 7 of small_vocabulary() is spelled.
inline std::string word(int id) { return std::string("w").append(std::to_string(id)); }

/// The first five lines are BERT's special tokens; then words, up to 100 tokens.
inline std::string small_vocabulary() {
  std::string lines = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n";
  for (int i = 5; i < 100; ++i) lines += word(i) + '\n';
  return lines;
}

/// Copies a golden encoder to `to`, below the folder, with a vocab.txt.
inline std::filesystem::path copy_encoder(const TempFolder& folder, const std::string& name, const std::string& to) {
  std::filesystem::copy(golden_encoders() / name, folder.path() / to);
  folder.write(to + "/vocab.txt", small_vocabulary());
  return folder.path() / to;
}

/// modules.json of sentence-transformers for modules of these types; a Pooling lies in 1_Pooling.
inline std::string modules_json(const std::vector<std::string>& types) {
  nlohmann::json modules = nlohmann::json::array();
  for (const std::string& type : types) {
    modules.push_back({{"idx", modules.size()},
                       {"path", type == "Pooling" ? "1_Pooling" : ""},
                       {"type", "sentence_transformers.models." + type}});
  }
  return modules.dump();
}

/// The folder of all-MiniLM-L6-v2, empty where there is none.
inline std::string minilm_folder() {
  const char* folder = std::getenv("NIBBLE_MINILM");
  return folder == nullptr ? "" : folder;
}
inline constexpr const char* kNoMinilm =
    "NIBBLE_MINILM does not name the default encoder's folder (`make test` sets it)";

struct MinilmGolden {
  std::vector<std::string> sentences;
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<float> embeddings;  // [sentences, 384], means, normalised
};
inline MinilmGolden read_minilm_golden() {
  const std::filesystem::path folder = std::filesystem::path(NIBBLE_TEST_DATA) / "minilm";
  MinilmGolden golden;
  std::ifstream lines(folder / "sentences.txt");
  for (std::string line; std::getline(lines, line);) golden.sentences.push_back(line);
  golden.ids = nlohmann::json::parse(std::ifstream(folder / "tokens.json"))
                   .at("ids")
                   .get<std::vector<std::vector<std::int32_t>>>();
  const SafetensorsFile file(folder / "embeddings.safetensors");
  golden.embeddings = to_float(*file.find("embeddings"));
  return golden;
}

}  // namespace nibble::test
