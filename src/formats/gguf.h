// The GGUF container (llama.cpp): typed keys, then tensors, many of them in block-quantised types.
// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include "core/file.h"
#include "core/tensor.h"

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// The tensor types that nibble reads, with the numbers that files use. The value of each element is in gguf_types.cpp.
enum class GgufType : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q4_k = 12,
  q6_k = 14,
  bf16 = 30,
};

/// A type's name as llama.cpp writes it ("Q4_1"), the elements of its block, and the bytes of one.
struct GgufTypeInfo {
  GgufType type;
  std::string_view name;
  std::int64_t block_elements;
  std::int64_t block_bytes;
};

/// Nothing where nibble does not read the type of that number.
std::optional<GgufTypeInfo> gguf_type_info(std::uint32_t number);

/// Dequantises `count` elements, a multiple of the type's block, from `blocks` to `out`.
void gguf_dequantize(GgufType type, const std::byte* blocks, std::int64_t count, float* out);

struct GgufTensor {
  std::string name;
  GgufTypeInfo info;
  Shape shape;  // outermost first, [out, in] for a linear: the reverse of the file's order
  std::span<const std::byte> bytes;

  /// Elements of one row (the last dimension) and the number of rows.
  std::int64_t columns() const { return shape.back(); }
  std::int64_t rows() const { return element_count(shape) / shape.back(); }
  /// Dequantises rows [first, first + rows) to `out`, which holds rows * columns() floats. Throws Error out of range.
  void rows_to_float(std::int64_t first, std::int64_t rows, std::span<float> out) const;
};

/// The keys and tensors of a file. Everything points into the bytes that were parsed. Getters throw Error that names
/// file and key where a value has another type than asked for, or, without a fallback, is absent.
class GgufContents {
 public:
  /// Parses a whole file in memory; `where` names it in errors. Throws Error where anything lies outside of the bytes,
  /// a name is there twice, a type is unknown, or the file is one part of several.
  static GgufContents parse(std::span<const std::byte> file, std::string_view where);

  const std::string& where() const { return where_; }
  bool has(std::string_view key) const { return values_.contains(key); }
  std::int64_t integer(std::string_view key) const;
  std::int64_t integer(std::string_view key, std::int64_t fallback) const;
  /// Numbers stored as 32-bit floats come back as the shortest decimal that means them: 1e-05, not 9.99999974e-06.
  double number(std::string_view key) const;
  double number(std::string_view key, double fallback) const;
  bool boolean(std::string_view key, bool fallback) const;
  std::string_view text(std::string_view key) const;
  std::string_view text(std::string_view key, std::string_view fallback) const;
  /// Arrays; an absent key is an empty one.
  std::vector<std::int64_t> integers(std::string_view key) const;
  std::vector<double> numbers(std::string_view key) const;
  std::vector<std::string_view> texts(std::string_view key) const;

  const std::map<std::string, GgufTensor, std::less<>>& tensors() const { return tensors_; }
  const GgufTensor* find(std::string_view name) const;

 private:
  friend class GgufParser;
  /// A value where it stands: decoded when asked for, so that an array costs nothing until then.
  struct Value {
    std::uint32_t type = 0;
    std::uint32_t element_type = 0;
    std::uint64_t count = 0;
    std::span<const std::byte> bytes;
  };
  const Value* value(std::string_view key) const;
  const Value& require(std::string_view key) const;
  [[noreturn]] void refuse(std::string_view key, std::string_view expected) const;

  std::string where_;
  std::uint32_t version_ = 3;
  std::map<std::string, Value, std::less<>> values_;
  std::map<std::string, GgufTensor, std::less<>> tensors_;
};

/// One mapped GGUF file.
class GgufFile {
 public:
  explicit GgufFile(const std::filesystem::path& path)
      : file_(path), contents_(GgufContents::parse(file_.bytes(), path.string())) {}

  const GgufContents& contents() const { return contents_; }
  /// The tensor's pages leave the resident set.
  void drop(const GgufTensor& tensor) const { file_.drop(tensor.bytes); }

 private:
  MappedFile file_;
  GgufContents contents_;
};

}  // namespace nibble
