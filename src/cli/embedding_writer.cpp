#include "cli/embedding_writer.h"

#include "cli/encoder_options.h"
#include "core/error.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <iterator>

namespace nibble {
namespace {

// NumPy wants a multiple of 64; two of them hold any shape.
constexpr std::size_t kHeaderBytes = 128;
static_assert(std::endian::native == std::endian::little, "values are written as they lie in memory");

}  // namespace

void check_embedding_output(const std::string& format, const std::string& output) {
  if (format != "jsonl" && format != "npy") fail_usage("--format {}: expected jsonl or npy", format);
  if (format == "npy" && output.empty())
    fail_usage("--format npy writes a file, not standard output: name one with --output FILE");
}

EmbeddingWriter::EmbeddingWriter(const std::string& format, const std::string& output, std::size_t dimension)
    : npy_(format == "npy"), dimension_(dimension) {
  check_embedding_output(format, output);
  if (!output.empty()) file_.emplace(output);
  // The shape is known at the end; a pipe, where nothing can be completed, is refused here.
  if (npy_) write_npy_header();
}

void EmbeddingWriter::write_npy_header() {
  std::string text =
      fmt::format("\x93NUMPY\x01{0}{1}{0}{{'descr': '<f4', 'fortran_order': False, 'shape': ({2}, {3}), }}", '\0',
                  static_cast<char>(kHeaderBytes - 10), count_, dimension_);
  text.resize(kHeaderBytes - 1, ' ');
  text += '\n';
  file_->write_at(0, std::as_bytes(std::span(text.data(), text.size())));
}

void EmbeddingWriter::put(std::string_view text) {
  if (file_) {
    file_->write(text);
  } else {
    print_out(text);
  }
}

void EmbeddingWriter::add(std::span<const float> values) {
  if (npy_) {
    file_->write(std::as_bytes(values));
    count_ += values.size() / dimension_;
    return;
  }
  fmt::memory_buffer text;
  for (std::size_t first = 0; first < values.size(); first += dimension_) {
    fmt::format_to(std::back_inserter(text), "{{\"index\": {}, \"embedding\": [", count_++);
    for (std::size_t i = 0; i < dimension_; ++i) {
      if (i > 0) text.append(std::string_view(", "));
      const float value = values[first + i];
      if (std::isfinite(value)) {
        fmt::format_to(std::back_inserter(text), "{}", value);
      } else {
        text.append(std::string_view("null"));
      }
    }
    text.append(std::string_view("]}\n"));
  }
  put({text.data(), text.size()});
}

void EmbeddingWriter::finish() {
  if (npy_) write_npy_header();
  if (file_) file_->commit();
}

}  // namespace nibble
