// Options that every command that runs an encoder of text shares, where its texts come from, and how it prints.
#pragma once

#include "engine/encoder.h"
#include "engine/text_model.h"
#include "formats/checkpoint.h"

#include <nlohmann/json_fwd.hpp>

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <initializer_list>
#include <istream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace CLI {
class App;
}

namespace nibble {

struct EncoderModelOptions {
  std::string model;
  std::string revision = "main";
  std::string dtype = "auto";
  std::string device = "cpu";
  std::string path = "fast";
  std::size_t batch_size = 32;
  std::size_t max_length = 0;

  /// Adds --model, --revision, --dtype, --device, --path, --batch-size and --max-length.
  void add_to(CLI::App& app);
  /// The folder that --model names: a folder, or a hub id found in the Hugging Face cache.
  std::shared_ptr<const Checkpoint> open() const;
  /// Throws UsageError for a type or a path that does not exist.
  TextModelOptions text_model_options() const;
};

/// The kind of a checkpoint's head, which must be one of `wanted`; else Error: what there is, what `command` ("nibble
/// classify") runs, and which command runs this checkpoint.
HeadKind require_head(const Checkpoint& checkpoint, std::initializer_list<HeadKind> wanted, std::string_view command);

/// Error where the program takes something else than `input`, which is what the option of that name gave ("images",
/// "audio").
void require_input(const Checkpoint& checkpoint, const Program& program, std::string_view input);

/// Texts from the command line, or the lines of a file or of standard input, a chunk at a time.
class TextSource {
 public:
  /// The texts where there are any; else the lines of `file` ("" or "-": standard input). Lines end in \n or \r\n.
  /// Error where the file cannot be read.
  TextSource(std::vector<std::string> texts, const std::string& file);

  /// Replaces `out` with the next texts, `count` of them or fewer where the texts end or get large; false after the
  /// last. Error for a line of more than 64 MiB.
  bool next(std::size_t count, std::vector<std::string>& out);

  /// Bytes read from a file so far, and of the whole file; 0 where that is not known (pipes).
  std::int64_t bytes_read() const { return bytes_read_; }
  std::int64_t total_bytes() const { return total_bytes_; }

 private:
  bool next_line(std::string& line);

  std::vector<std::string> texts_;
  std::size_t given_ = 0;
  std::string name_;
  std::ifstream file_;
  std::istream* in_ = nullptr;
  std::string buffer_;
  std::size_t at_ = 0;
  std::size_t lines_ = 0;
  std::int64_t bytes_read_ = 0;
  std::int64_t total_bytes_ = 0;
};

/// Writes to standard output; Error where that fails (a full disk).
void print_out(std::string_view text);

/// One line of JSON; bytes that are no UTF-8 become U+FFFD.
std::string json_line(const nlohmann::ordered_json& value);

/// The number whose shortest text is that of the float: 0.1f is 0.1.
double shortest(float value);

/// Warns that `cut` of `texts` texts were longer than the limit, where any were.
void warn_cut(std::size_t cut, std::size_t texts, std::size_t max_length);

}  // namespace nibble
