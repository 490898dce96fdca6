#include "engine/text_encoder.h"

#include "core/error.h"
#include "engine/image_text.h"
#include "formats/json.h"
#include "formats/unicode.h"
#include "models/family.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <utility>

namespace nibble {
namespace {

namespace fs = std::filesystem;

// sentence-transformers has a handful.
constexpr std::size_t kMostModules = 64;

std::optional<nlohmann::json> read_if_there(const fs::path& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return std::nullopt;
  return read_json_file(path);
}

// The folder of a module, which must lie within the model's.
fs::path module_folder(const fs::path& folder, const JsonView& module) {
  const fs::path below = fs::path(module.text("path", "")).lexically_normal();
  if (below.is_absolute() || (!below.empty() && *below.begin() == ".."))
    module.refuse("path", "a folder within the model's");
  return folder / below;
}

void read_pooling(const fs::path& file, const EmbeddingOptions& options, EmbeddingSettings& settings) {
  const nlohmann::json json = read_json_file(file);
  const JsonView config(json, file.string());
  if (!config.boolean("include_prompt", true) && !settings.prefix.empty()) {
    fail(
        "{}: include_prompt is false: the prompt's tokens are to be left out of the pooling, which is not done here; "
        "give an empty prefix",
        file.string());
  }
  if (options.pooling) return;
  std::vector<std::string> modes;
  for (const auto& [key, value] : json.items()) {
    if (key.starts_with("pooling_mode_") && config.boolean(key)) modes.push_back(key);
  }
  if (modes == std::vector<std::string>{"pooling_mode_mean_tokens"}) {
    settings.pooling = Pooling::mean;
  } else if (modes == std::vector<std::string>{"pooling_mode_cls_token"}) {
    settings.pooling = Pooling::cls;
  } else {
    std::string found;
    for (const std::string& mode : modes) found += (found.empty() ? "" : " and ") + mode;
    fail(
        "{}: expected either pooling_mode_mean_tokens or pooling_mode_cls_token to be true, found {}; name a pooling "
        "(mean, cls, pooler) to use that instead",
        file.string(), found.empty() ? "none" : found);
  }
}

void read_modules(const fs::path& folder, const EmbeddingOptions& options, EmbeddingSettings& settings) {
  const fs::path file = folder / "modules.json";
  const auto json = read_if_there(file);
  if (!json) return;
  const nlohmann::json wrapped = {{"modules", *json}};
  bool normalizes = false;
  for (const JsonView& module : JsonView(wrapped, file.string()).objects("modules", kMostModules)) {
    // The class, whatever package it moved to.
    const std::string type = module.text("type");
    const std::string name = type.substr(type.rfind('.') + 1);
    if (name == "Pooling") {
      read_pooling(module_folder(folder, module) / "config.json", options, settings);
    } else if (name == "Normalize") {
      normalizes = true;
    } else if (name != "Transformer" && !options.pooling) {
      fail(
          "{}: there is a module of type {}, which nibble does not have; name a pooling (mean, cls, pooler) to get "
          "embeddings without it",
          file.string(), type);
    }
  }
  if (!options.normalize) settings.normalize = normalizes;
}

// The model of texts, of a checkpoint that holds one of images, too.
Program text_program(const Checkpoint& checkpoint) {
  return program_from_checkpoint(checkpoint, part_of(checkpoint, "text"));
}

// A text whose model is one of two that are compared is its projection, where nothing else is asked for.
EmbeddingSettings settings_of(const Checkpoint& checkpoint, EmbeddingOptions options) {
  if (!options.pooling && text_program(checkpoint).head == HeadKind::projection) options.pooling = Pooling::pooler;
  return read_embedding_settings(checkpoint.folder(), options);
}

TextModelOptions model_options(const Checkpoint& checkpoint, const EmbeddingOptions& wanted,
                               const EmbeddingSettings& settings, TextModelOptions options) {
  const Program program = text_program(checkpoint);
  options.engine.part = part_of(checkpoint, "text");
  options.engine.head = settings.pooling == Pooling::pooler;
  if (program.encoder && options.engine.head && program.head != HeadKind::pooler &&
      program.head != HeadKind::projection) {
    fail("{} has {} instead of a pooler: take the mean or cls pooling", checkpoint.folder().string(),
         name_of(program.head));
  }
  // A folder may allow more than the model has positions for; somebody who asks for more is told.
  options.max_length = settings.max_length;
  if (wanted.max_length == 0)
    options.max_length = std::min(options.max_length, static_cast<std::size_t>(program.max_positions));
  return options;
}

}  // namespace

std::string_view name_of(Pooling pooling) {
  switch (pooling) {
    case Pooling::cls:
      return "cls";
    case Pooling::pooler:
      return "pooler";
    case Pooling::mean:
      break;
  }
  return "mean";
}

Pooling pooling_named(std::string_view name) {
  for (const Pooling pooling : {Pooling::mean, Pooling::cls, Pooling::pooler}) {
    if (name == name_of(pooling)) return pooling;
  }
  fail_usage("there is no pooling \"{}\": expected mean, cls or pooler", name);
}

void pool(Pooling pooling, const TextRows& rows, std::span<float> out) {
  if (pooling == Pooling::pooler) {
    std::copy(rows.head.begin(), rows.head.end(), out.begin());
    return;
  }
  if (pooling == Pooling::cls) {
    std::copy_n(rows.hidden.begin(), out.size(), out.begin());
    return;
  }
  // As many values as a long text has tokens.
  std::vector<double> sums(out.size());
  for (std::size_t i = 0; i < rows.hidden.size(); i += out.size()) {
    for (std::size_t c = 0; c < out.size(); ++c) sums[c] += static_cast<double>(rows.hidden[i + c]);
  }
  const std::size_t rows_of_text = rows.hidden.size() / out.size();
  const auto tokens = static_cast<double>(rows_of_text);
  for (std::size_t c = 0; c < out.size(); ++c) out[c] = static_cast<float>(sums[c] / tokens);
}

void to_unit_length(std::span<float> values) {
  double squares = 0;
  for (const float v : values) squares += static_cast<double>(v) * static_cast<double>(v);
  if (squares == 0) return;
  const double factor = 1 / std::sqrt(squares);
  for (float& v : values) v = static_cast<float>(static_cast<double>(v) * factor);
}

EmbeddingSettings read_embedding_settings(const fs::path& folder, const EmbeddingOptions& options) {
  EmbeddingSettings settings;
  if (options.prefix) {
    settings.prefix = *options.prefix;
  } else if (const auto json = read_if_there(folder / "config_sentence_transformers.json")) {
    const JsonView config(*json, (folder / "config_sentence_transformers.json").string());
    const std::string name = config.text("default_prompt_name", "");
    if (const auto prompts = config.object("prompts"); prompts && !name.empty()) settings.prefix = prompts->text(name);
  }
  if (options.pooling) settings.pooling = *options.pooling;
  if (options.normalize) settings.normalize = *options.normalize;
  read_modules(folder, options, settings);
  settings.max_length = options.max_length;
  if (const auto json = read_if_there(folder / "sentence_bert_config.json")) {
    const JsonView config(*json, (folder / "sentence_bert_config.json").string());
    settings.lowercase = config.boolean("do_lower_case", false);
    if (settings.max_length == 0 && config.has("max_seq_length"))
      settings.max_length = static_cast<std::size_t>(config.positive("max_seq_length"));
  }
  return settings;
}

TextEmbedder::TextEmbedder(const std::shared_ptr<const Checkpoint>& checkpoint, const EmbeddingOptions& options,
                           TextModelOptions model)
    : settings_(settings_of(*checkpoint, options)),
      model_(checkpoint, model_options(*checkpoint, options, settings_, std::move(model))) {
  settings_.max_length = model_.max_length();
}

std::size_t TextEmbedder::dimension() const {
  const EncoderEngine& engine = model_.engine();
  return static_cast<std::size_t>(settings_.pooling == Pooling::pooler ? engine.head_columns()
                                                                       : engine.program().hidden);
}

Embeddings TextEmbedder::embed(std::span<const std::string> texts) {
  Embeddings out;
  std::vector<EncodedText> encoded;
  encoded.reserve(texts.size());
  for (const std::string& text : texts) {
    std::string whole = settings_.prefix + text;
    if (settings_.lowercase) whole = lowercase_unicode(to_valid_utf8(whole));
    encoded.push_back(model_.tokenize(whole));
    out.tokens += encoded.back().ids.size();
    if (encoded.back().cut > 0) ++out.cut;
  }
  const std::size_t width = dimension();
  out.values.resize(texts.size() * width);
  const bool from_head = settings_.pooling == Pooling::pooler;
  model_.run(encoded, {.hidden = !from_head, .head = from_head}, [&](std::size_t text, const TextRows& rows) {
    const std::span<float> to = std::span(out.values).subspan(text * width, width);
    pool(settings_.pooling, rows, to);
    if (settings_.normalize) to_unit_length(to);
  });
  return out;
}

}  // namespace nibble
