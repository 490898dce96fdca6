#include "nibble/nibble.h"

#include "core/error.h"
#include "core/thread_pool.h"
#include "engine/chat.h"
#include "engine/generator.h"
#include "engine/stop_tokens.h"
#include "engine/text_encoder.h"
#include "formats/hub_cache.h"
#include "formats/tokenizer.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>

namespace nibble {
namespace {

EngineOptions engine_options(const LoadOptions& options) {
  EngineOptions out;
  out.kernel = options.kernel;
  if (options.dtype != "auto") {
    out.compute = dtype_from_name(options.dtype);
    if (!out.compute) fail_usage("LoadOptions::dtype is \"{}\": expected auto, f32 or bf16", options.dtype);
  }
  out.max_batch = options.max_batch;
  out.max_tokens = options.max_tokens;
  // Rows whose logits log_probabilities() gets at a time: 64 of a vocabulary of 128k take 33 MB.
  out.max_logit_rows = 64;
  return out;
}

std::shared_ptr<const Checkpoint> open(const std::string& model, const std::string& revision, int threads) {
  if (threads > 0) ThreadPool::instance().set_threads(threads);
  return std::make_shared<const Checkpoint>(resolve_model(model, revision));
}

// A folder for benchmarks need have none.
std::optional<Tokenizer> load_tokenizer(const std::filesystem::path& folder) {
  if (!Tokenizer::is_in(folder)) return std::nullopt;
  return Tokenizer::load(folder);
}

}  // namespace

struct LanguageModel::Impl {
  Impl(const std::string& model, const LoadOptions& options)
      : checkpoint(open(model, options.revision, options.threads)),
        maybe_tokenizer(load_tokenizer(checkpoint->folder())),
        stops(stop_tokens(*checkpoint)),
        engine(checkpoint, engine_options(options)) {}

  const Tokenizer& tokenizer() const {
    if (!maybe_tokenizer)
      fail("{} has no tokenizer: only calls that take token ids work on it", checkpoint->folder().string());
    return *maybe_tokenizer;
  }

  GenerateOptions generate_options(const TextOptions& options, std::int64_t longest_prompt) const {
    GenerateOptions out;
    out.max_new_tokens = std::min(options.max_new_tokens, engine.max_tokens() - longest_prompt + 1);
    out.stop_tokens = stops;
    out.sampling = {options.temperature,        options.top_k, options.top_p, options.min_p,
                    options.repetition_penalty, options.seed};
    return out;
  }

  std::string run(const std::vector<std::int32_t>& prompt, const TextOptions& options) {
    StreamingDecoder decoder(tokenizer(), true);
    std::string text;
    const auto give = [&](const std::string& piece) {
      if (piece.empty()) return;
      text += piece;
      if (options.on_text) options.on_text(piece);
    };
    GenerateOptions out = generate_options(options, static_cast<std::int64_t>(prompt.size()));
    out.on_token = [&](std::int64_t, std::int32_t id) { give(decoder.push(id)); };
    nibble::generate(engine, {&prompt, 1}, out);
    give(decoder.finish());
    return text;
  }

  std::shared_ptr<const Checkpoint> checkpoint;
  std::optional<Tokenizer> maybe_tokenizer;
  std::vector<std::int32_t> stops;
  Engine engine;
};

LanguageModel::LanguageModel(const std::string& model, const LoadOptions& options)
    : impl_(std::make_unique<Impl>(model, options)) {}
LanguageModel::LanguageModel(LanguageModel&&) noexcept = default;
LanguageModel& LanguageModel::operator=(LanguageModel&&) noexcept = default;
LanguageModel::~LanguageModel() = default;

std::string LanguageModel::complete(std::string_view prompt, const TextOptions& options) {
  return impl_->run(impl_->tokenizer().encode(prompt, true), options);
}

std::string LanguageModel::chat(const std::vector<Message>& messages, const TextOptions& options) {
  std::vector<ChatMessage> turns;
  turns.reserve(messages.size());
  for (const Message& message : messages) turns.push_back({message.role, message.content});
  return impl_->run(chat_prompt(impl_->checkpoint->folder(), impl_->tokenizer(), turns), options);
}

std::vector<std::int32_t> LanguageModel::tokenize(std::string_view text, bool add_special_tokens) const {
  return impl_->tokenizer().encode(text, add_special_tokens);
}

std::string LanguageModel::detokenize(const std::vector<std::int32_t>& ids) const {
  return impl_->tokenizer().decode(ids, true);
}

std::vector<std::vector<std::int32_t>> LanguageModel::generate(const std::vector<std::vector<std::int32_t>>& prompts,
                                                               const TextOptions& options) {
  std::int64_t longest = 1;
  for (const auto& prompt : prompts) longest = std::max(longest, static_cast<std::int64_t>(prompt.size()));
  return nibble::generate(impl_->engine, prompts, impl_->generate_options(options, longest)).tokens;
}

std::vector<double> LanguageModel::log_probabilities(const std::vector<std::int32_t>& ids) {
  std::vector<double> out;
  const std::int64_t vocab = vocab_size();
  impl_->engine.score(ids, 0, [&](std::int64_t first, std::int64_t rows, const float* logits) {
    for (std::int64_t r = 0; r < rows && first + r + 1 < static_cast<std::int64_t>(ids.size()); ++r) {
      const float* row = logits + r * vocab;
      const double largest = *std::max_element(row, row + vocab);
      double sum = 0;
      for (std::int64_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(row[v]) - largest);
      out.push_back(static_cast<double>(row[ids[static_cast<std::size_t>(first + r + 1)]]) - largest - std::log(sum));
    }
  });
  return out;
}

double LanguageModel::load_seconds() const { return impl_->engine.load_times().total; }
std::size_t LanguageModel::planned_bytes() const { return impl_->engine.plan().total(); }
std::int64_t LanguageModel::vocab_size() const { return impl_->engine.program().vocab; }

namespace {

EmbeddingOptions embedding_options(const TextEncoderOptions& options) {
  EmbeddingOptions out;
  if (options.pooling != "auto") out.pooling = pooling_named(options.pooling);
  out.normalize = options.normalize;
  out.prefix = options.prefix;
  out.max_length = options.max_length;
  return out;
}

TextModelOptions text_model_options(const TextEncoderOptions& options) {
  TextModelOptions out;
  out.engine.device = options.device;
  out.engine.path = encoder_path_named(options.path);
  if (options.dtype != "auto") {
    out.engine.compute = dtype_from_name(options.dtype);
    if (!out.engine.compute)
      fail_usage("TextEncoderOptions::dtype is \"{}\": expected auto, f32 or bf16", options.dtype);
  }
  out.batch_size = options.batch_size;
  return out;
}

}  // namespace

struct TextEncoder::Impl {
  Impl(const std::string& model, const TextEncoderOptions& options)
      : embedder(open(model, options.revision, options.threads), embedding_options(options),
                 text_model_options(options)) {}

  TextEmbedder embedder;
};

TextEncoder::TextEncoder(const std::string& model, const TextEncoderOptions& options)
    : impl_(std::make_unique<Impl>(model, options)) {}
TextEncoder::TextEncoder(TextEncoder&&) noexcept = default;
TextEncoder& TextEncoder::operator=(TextEncoder&&) noexcept = default;
TextEncoder::~TextEncoder() = default;

std::vector<std::vector<float>> TextEncoder::encode(std::span<const std::string> texts) {
  const Embeddings embeddings = impl_->embedder.embed(texts);
  const auto width = static_cast<std::ptrdiff_t>(dimension());
  std::vector<std::vector<float>> out;
  out.reserve(texts.size());
  for (auto at = embeddings.values.begin(); at != embeddings.values.end(); at += width)
    out.emplace_back(at, at + width);
  return out;
}

std::size_t TextEncoder::dimension() const { return impl_->embedder.dimension(); }
std::size_t TextEncoder::max_length() const { return impl_->embedder.settings().max_length; }

std::string version() { return NIBBLE_VERSION; }

}  // namespace nibble
