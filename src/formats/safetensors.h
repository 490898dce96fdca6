// The safetensors container: 8 bytes of header length, a JSON header, then the tensors' bytes without holes.
// Format: https://github.com/huggingface/safetensors (README, "Format").
#pragma once

#include "core/file.h"
#include "core/tensor.h"

#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// What the header of a file says. The views point into the bytes that were parsed.
struct SafetensorsHeader {
  std::map<std::string, TensorView, std::less<>> tensors;
  std::map<std::string, std::string> metadata;
  /// The length field and the JSON text: the bytes that describe the file.
  std::span<const std::byte> bytes;
};

/// Parses a whole file that lies in memory; `where` names it in errors. Throws Error unless every rule of the format
/// holds: header length at most 100,000,000 and inside the file; JSON that starts with `{`, has no key twice, and only
/// known types; shapes whose size is that of their byte range; ranges that tile the data exactly, without hole or
/// overlap.
SafetensorsHeader parse_safetensors(std::span<const std::byte> file, std::string_view where);

/// One mapped safetensors file.
class SafetensorsFile {
 public:
  /// Throws Error as parse_safetensors does, and when the file cannot be read.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  const SafetensorsHeader& header() const { return header_; }
  std::size_t size() const { return file_.bytes().size(); }

  /// Null where the file has no tensor of that name.
  const TensorView* find(std::string_view name) const;
  /// The tensor's pages leave the resident set; reading them again brings them back.
  void drop(const TensorView& tensor) const { file_.drop(tensor.bytes); }

 private:
  MappedFile file_;
  SafetensorsHeader header_;
};

/// The name, type and shape of a tensor that is going to be written.
struct TensorDeclaration {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
};

/// Writes a safetensors file whose tensors are declared first; their data then comes in any order and in pieces, so
/// that no more than a piece need be in memory. Tensors are laid out by falling size of their type, then in the order
/// given, and the header is padded to 8 bytes, so that all data is aligned for its type.
class SafetensorsWriter {
 public:
  /// `metadata` should hold format = pt: transformers refuses files without it. Throws Error on a name given twice.
  SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorDeclaration> tensors,
                    const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

  /// Adds bytes to the end of one tensor's data. Throws Error for an undeclared name and for too many bytes.
  void append(std::string_view name, std::span<const std::byte> bytes);
  /// Puts the file in its place. Throws Error where a tensor has not got all its bytes.
  void commit();

  /// The sum of all tensors' bytes, as an index file's metadata.total_size has it.
  std::size_t total_size() const { return total_size_; }

 private:
  struct Slot {
    std::size_t begin = 0;
    std::size_t end = 0;
    std::size_t written = 0;
  };
  std::filesystem::path path_;
  std::map<std::string, Slot, std::less<>> slots_;
  std::size_t data_start_ = 0;
  std::size_t total_size_ = 0;
  AtomicFile file_;
};

}  // namespace nibble
