// nibble encode --model MODEL [FILE]: embeddings of lines of text, of images, or of recordings.
#include "cli/command.h"
#include "cli/embedding_writer.h"
#include "cli/encode_audio.h"
#include "cli/encode_images.h"
#include "cli/encoder_options.h"
#include "core/error.h"
#include "core/progress.h"
#include "engine/text_encoder.h"

#include <fmt/format.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace nibble {
namespace {

// Batches whose texts are sorted by length together: enough that neighbours hardly differ.
constexpr std::size_t kBatchesOfChunk = 64;

struct Arguments {
  EncoderModelOptions model;
  std::string file;
  std::vector<std::string> images;
  std::vector<std::string> audio;
  std::string pooling = "auto";
  std::optional<bool> normalize;
  std::optional<std::string> prefix;
  std::string format = "jsonl";
  std::string output;
};

int run(const Arguments& arguments) {
  if (!arguments.audio.empty()) {
    if (!arguments.images.empty()) fail_usage("give --audio or --images, not both: a model takes one of them");
    if (!arguments.file.empty()) fail_usage("{}: give a file of text, or --audio, not both", arguments.file);
    return encode_audio(arguments.model, {arguments.pooling, arguments.normalize}, arguments.audio, arguments.format,
                        arguments.output);
  }
  if (!arguments.images.empty()) {
    if (!arguments.file.empty()) fail_usage("{}: give a file of text, or --images, not both", arguments.file);
    return encode_images(arguments.model, {arguments.pooling, arguments.normalize}, arguments.images, arguments.format,
                         arguments.output);
  }
  check_embedding_output(arguments.format, arguments.output);
  EmbeddingOptions options;
  if (arguments.pooling != "auto") options.pooling = pooling_named(arguments.pooling);
  options.normalize = arguments.normalize;
  options.prefix = arguments.prefix;
  options.max_length = arguments.model.max_length;
  const TextModelOptions model_options = arguments.model.text_model_options();
  TextSource source({}, arguments.file);
  TextEmbedder embedder(arguments.model.open(), options, model_options);
  EmbeddingWriter writer(arguments.format, arguments.output, embedder.dimension());

  // A bar between lines of results would make both unreadable.
  std::unique_ptr<Progress> progress;
  if (!arguments.output.empty() || ::isatty(STDOUT_FILENO) != 1)
    progress = std::make_unique<Progress>("encode", source.total_bytes());
  std::size_t cut = 0;
  std::size_t tokens = 0;
  std::vector<std::string> texts;
  while (source.next(arguments.model.batch_size * kBatchesOfChunk, texts)) {
    const Embeddings embeddings = embedder.embed(texts);
    writer.add(embeddings.values);
    cut += embeddings.cut;
    tokens += embeddings.tokens;
    if (progress && source.total_bytes() > 0)
      progress->update(source.bytes_read(), fmt::format("bytes, {} texts", writer.count()));
  }
  writer.finish();
  if (progress) progress->finish(fmt::format("{} texts, {} tokens", writer.count(), tokens));
  warn_cut(cut, writer.count(), embedder.settings().max_length);
  return 0;
}

const CommandRegistration kRegistration(
    {"encode", "embeddings of lines of text, of images, or of recordings", [](CLI::App& app) -> std::function<int()> {
       auto a = std::make_shared<Arguments>();
       a->model.add_to(app);
       app.add_option("file", a->file, "a file with one text a line (default, or -: standard input)");
       app.add_option("--images", a->images, "image files, JPEG or PNG, in place of text");
       app.add_option("--audio", a->audio, "WAV files in place of text");
       app.add_option("--pooling", a->pooling,
                      "auto (as modules.json says, else mean), mean, cls (the first token's state) or pooler")
           ->capture_default_str();
       // An option that is not given must stay unset: then the folder decides.
       app.add_flag_function(
           "--normalize,!--no-normalize", [a](std::int64_t times) { a->normalize = times > 0; },
           "bring embeddings to length 1, or not (default: as modules.json says, else to length 1)");
       app.add_option("--prefix", a->prefix, "put before each text (default: the folder's default prompt, if any)");
       app.add_option("--format", a->format, "jsonl, or npy: a float32 array of NumPy")->capture_default_str();
       app.add_option("--output", a->output, "a file to write (default: standard output)");
       return [a] { return run(*a); };
     }});

}  // namespace
}  // namespace nibble
