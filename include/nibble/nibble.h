// The C++ API of nibble: load a Hugging Face checkpoint (full precision or GPTQ), complete text, chat, score tokens,
// make embeddings.
//
//   nibble::LanguageModel model("path/to/SmolLM2-135M-Instruct");
//   std::string answer = model.chat({{"user", "Why is the sky blue?"}});
//
//   nibble::TextEncoder encoder("path/to/all-MiniLM-L6-v2");
//   std::vector<std::vector<float>> embeddings = encoder.encode(texts);
//
// Link with the CMake package: find_package(nibble REQUIRED), target nibble::nibble. Failures throw std::runtime_error
// whose what() is one sentence: what was read, what was expected, what was found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// How a model is loaded.
struct LoadOptions {
  std::string revision = "main";  // of a hub id
  std::string kernel = "auto";    // kernel of the linear layers; `nibble kernels` lists them
  std::string dtype = "auto";     // what linear layers compute in: auto, f32, bf16
  int threads = 0;                // 0: the CPUs that this process may use; the pool is one for the process
  std::int64_t max_batch = 1;     // sequences at a time
  std::int64_t max_tokens = 0;    // tokens a sequence, prompt included; 0: the model's limit, at most 4096
};

/// How tokens are chosen.
struct TextOptions {
  std::int64_t max_new_tokens = 256;
  float temperature = 0;   // 0: the most likely token each time
  std::int32_t top_k = 0;  // 0: all
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  std::uint64_t seed = 0;
  /// Called with each piece of text as it is made; may be empty.
  std::function<void(std::string_view piece)> on_text;
};

struct Message {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

/// A model ready to run; without a tokenizer.json in its folder, only calls that take token ids work. Not to be used
/// from two threads at once.
class LanguageModel {
 public:
  /// `model`: a folder, or a hub id that is in the Hugging Face cache.
  explicit LanguageModel(const std::string& model, const LoadOptions& options = {});
  LanguageModel(LanguageModel&&) noexcept;
  LanguageModel& operator=(LanguageModel&&) noexcept;
  ~LanguageModel();

  /// The text that follows `prompt`.
  std::string complete(std::string_view prompt, const TextOptions& options = {});
  /// The answer to a conversation, by the model's chat template.
  std::string chat(const std::vector<Message>& messages, const TextOptions& options = {});

  std::vector<std::int32_t> tokenize(std::string_view text, bool add_special_tokens = true) const;
  std::string detokenize(const std::vector<std::int32_t>& ids) const;
  /// New tokens for each of 1 to max_batch prompts of any lengths, run together.
  std::vector<std::vector<std::int32_t>> generate(const std::vector<std::vector<std::int32_t>>& prompts,
                                                  const TextOptions& options = {});
  /// log p(ids[i] | ids[0..i-1]) for i = 1 .. n-1, natural logarithm: n - 1 values.
  std::vector<double> log_probabilities(const std::vector<std::int32_t>& ids);

  double load_seconds() const;
  /// Bytes that the memory plan holds: weights, KV cache, activations, scratch.
  std::size_t planned_bytes() const;
  std::int64_t vocab_size() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// How an encoder of text is loaded, and how it makes embeddings. What is not set is as the folder says: modules.json
/// and the files that it names, where the folder is one of sentence-transformers; elsewhere the mean, normalised.
struct TextEncoderOptions {
  std::string revision = "main";      // of a hub id
  std::string device = "cpu";         // cpu, cuda, cuda:N, or auto: a GPU where there is one
  std::string dtype = "auto";         // what linear layers and attention compute in: auto, f32, bf16, on a GPU f16
  std::string path = "fast";          // fast: packed and fused; eager: op by op, padded
  int threads = 0;                    // 0: the CPUs that this process may use; the pool is one for the process
  std::size_t batch_size = 32;        // texts of a forward pass at most
  std::size_t max_length = 0;         // tokens of a text, special ones among them; 0: what the folder says
  std::string pooling = "auto";       // auto, mean, cls (the first token's state), pooler (the model's own)
  std::optional<bool> normalize;      // to length 1
  std::optional<std::string> prefix;  // put before each text
};

/// Texts to embeddings. Not to be used from two threads at once.
class TextEncoder {
 public:
  /// `model`: a folder, or a hub id that is in the Hugging Face cache.
  explicit TextEncoder(const std::string& model, const TextEncoderOptions& options = {});
  TextEncoder(TextEncoder&&) noexcept;
  TextEncoder& operator=(TextEncoder&&) noexcept;
  ~TextEncoder();

  /// An embedding of dimension() values for each text, in their order. Texts of more than max_length() tokens are cut.
  std::vector<std::vector<float>> encode(std::span<const std::string> texts);
  /// Values of an embedding.
  std::size_t dimension() const;
  /// The most tokens of a text that count.
  std::size_t max_length() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// "0.1.0"
std::string version();

}  // namespace nibble
