#include "cli/encoder_options.h"

#include "core/error.h"
#include "core/log.h"
#include "formats/hub_cache.h"
#include "formats/json.h"
#include "models/bert_like.h"
#include "models/family.h"

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <system_error>

namespace nibble {
namespace {

constexpr std::size_t kReadBytes = std::size_t{1} << 16;
// Of text, in a chunk: one of more would be an embedding's work of minutes between two outputs.
constexpr std::size_t kChunkBytes = std::size_t{16} << 20;
constexpr std::size_t kMostLineBytes = std::size_t{64} << 20;

std::string commands_for(HeadKind head) {
  switch (head) {
    case HeadKind::masked_lm:
      return "nibble fill-mask and nibble encode";
    case HeadKind::sequence_class:
    case HeadKind::token_class:
    case HeadKind::question_answer:
      return "nibble classify and nibble encode";
    case HeadKind::pooler:
    case HeadKind::projection:
    case HeadKind::none:
      break;
  }
  return "nibble encode";
}

std::string architectures_for(std::initializer_list<HeadKind> heads) {
  std::vector<std::string_view> names;
  for (const HeadKind head : heads) {
    if (head == HeadKind::masked_lm) names.emplace_back("...ForMaskedLM");
    if (head == HeadKind::sequence_class) names.emplace_back("...ForSequenceClassification");
    if (head == HeadKind::token_class) names.emplace_back("...ForTokenClassification");
    if (head == HeadKind::question_answer) names.emplace_back("...ForQuestionAnswering");
  }
  std::string out;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i > 0) out += i + 1 < names.size() ? ", " : " or ";
    out += names[i];
  }
  return out;
}

}  // namespace

void EncoderModelOptions::add_to(CLI::App& app) {
  app.add_option("--model", model, "a Hugging Face folder, or a hub id that is in the Hugging Face cache")->required();
  app.add_option("--revision", revision, "branch, tag or commit of a hub id")->capture_default_str();
  app.add_option("--dtype", dtype, "what linear layers and attention compute in: auto, f32, bf16, on a GPU f16")
      ->capture_default_str();
  app.add_option("--device", device, "auto (a GPU where there is one), cpu, cuda, cuda:N")->capture_default_str();
  app.add_option("--path", path, "fast: packed and fused; eager: op by op, padded")->capture_default_str();
  app.add_option("--batch-size", batch_size, "texts of a forward pass")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 16));
  app.add_option("--max-length", max_length, "tokens of a text at most, the rest is cut (default: by the model)")
      ->check(CLI::Range(1, 1 << 24));
}

std::shared_ptr<const Checkpoint> EncoderModelOptions::open() const {
  return std::make_shared<const Checkpoint>(resolve_model(model, revision));
}

TextModelOptions EncoderModelOptions::text_model_options() const {
  TextModelOptions options;
  options.engine.device = device;
  options.engine.path = encoder_path_named(path);
  if (dtype != "auto") {
    options.engine.compute = dtype_from_name(dtype);
    if (!options.engine.compute)
      fail_usage("--dtype {}: there is no such type; expected auto, f32, bf16 or f16", dtype);
  }
  options.batch_size = batch_size;
  options.max_length = max_length;
  return options;
}

void require_input(const Checkpoint& checkpoint, const Program& program, std::string_view input) {
  const std::string_view takes = input_kind_of(program);
  if (takes == input) return;
  fail("{} is a {} model, which takes {}: leave out --{}", checkpoint.folder().string(), program.architecture, takes,
       input);
}

HeadKind require_head(const Checkpoint& checkpoint, std::initializer_list<HeadKind> wanted, std::string_view command) {
  const Program program = program_from_checkpoint(checkpoint);
  if (!program.encoder) {
    fail("{} is a {} model, which generates text: {} runs encoders such as bert and roberta; nibble generate runs it",
         checkpoint.folder().string(), program.architecture, command);
  }
  if (std::find(wanted.begin(), wanted.end(), program.head) != wanted.end()) return program.head;
  const std::string architecture = architecture_of(JsonView(checkpoint.config(), "config.json"));
  fail("{} has {}: {} needs a checkpoint whose architecture in config.json is {}, found {}; {} can use this one",
       checkpoint.folder().string(), name_of(program.head), command, architectures_for(wanted),
       architecture.empty() ? "none" : architecture, commands_for(program.head));
}

TextSource::TextSource(std::vector<std::string> texts, const std::string& file) : texts_(std::move(texts)) {
  if (!texts_.empty()) return;
  if (file.empty() || file == "-") {
    name_ = "standard input";
    in_ = &std::cin;
    return;
  }
  name_ = file;
  std::error_code error;
  if (std::filesystem::is_directory(file, error)) fail("cannot read {}: it is a folder, expected a file of text", file);
  file_.open(file, std::ios::binary);
  if (!file_) fail("cannot read {}: {}", file, std::generic_category().message(errno));
  in_ = &file_;
  const auto size = std::filesystem::file_size(file, error);
  if (!error) total_bytes_ = static_cast<std::int64_t>(size);
}

bool TextSource::next_line(std::string& line) {
  line.clear();
  while (true) {
    const std::size_t end = buffer_.find('\n', at_);
    if (end != std::string::npos) {
      line.append(buffer_, at_, end - at_);
      at_ = end + 1;
      break;
    }
    line.append(buffer_, at_, std::string::npos);
    if (line.size() > kMostLineBytes) {
      fail("line {} of {} has more than {} bytes: expected one text a line", lines_ + 1, name_, kMostLineBytes);
    }
    buffer_.resize(kReadBytes);
    in_->read(buffer_.data(), static_cast<std::streamsize>(buffer_.size()));
    buffer_.resize(static_cast<std::size_t>(in_->gcount()));
    at_ = 0;
    bytes_read_ += in_->gcount();
    if (in_->bad()) fail("cannot read {}: {}", name_, std::generic_category().message(errno));
    if (!buffer_.empty()) continue;
    if (line.empty()) return false;
    break;  // the last line has no end
  }
  if (line.ends_with('\r')) line.pop_back();
  ++lines_;
  return true;
}

bool TextSource::next(std::size_t count, std::vector<std::string>& out) {
  out.clear();
  if (in_ == nullptr) {
    while (out.size() < count && given_ < texts_.size()) out.push_back(std::move(texts_[given_++]));
    return !out.empty();
  }
  std::size_t bytes = 0;
  std::string line;
  while (out.size() < count && bytes < kChunkBytes && next_line(line)) {
    bytes += line.size();
    out.push_back(line);
  }
  return !out.empty();
}

void print_out(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    fail("cannot write standard output: {}", std::generic_category().message(errno));
}

std::string json_line(const nlohmann::ordered_json& value) {
  return value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

double shortest(float value) { return std::isfinite(value) ? std::stod(fmt::format("{}", value)) : value; }

void warn_cut(std::size_t cut, std::size_t texts, std::size_t max_length) {
  if (cut == 0) return;
  log_warn(fmt::format("{} of {} texts had more than {} tokens and were cut to that (--max-length)", cut, texts,
                       max_length));
}

}  // namespace nibble
