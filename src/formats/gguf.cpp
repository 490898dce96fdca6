#include "formats/gguf.h"

#include "core/checked.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>

namespace nibble {
namespace {

/// The numbers of the value types in the file.
enum ValueType : std::uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

/// Bytes of one value; 0 where it varies (strings, arrays) or the type is unknown.
std::size_t fixed_size(std::uint32_t type) {
  constexpr std::array<std::size_t, 13> kSizes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return type < kSizes.size() ? kSizes[type] : 0;
}

template <typename T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

std::optional<std::int64_t> decode_integer(std::uint32_t type, const std::byte* at) {
  switch (type) {
    case kU8:
      return load<std::uint8_t>(at);
    case kI8:
      return load<std::int8_t>(at);
    case kU16:
      return load<std::uint16_t>(at);
    case kI16:
      return load<std::int16_t>(at);
    case kU32:
      return load<std::uint32_t>(at);
    case kI32:
      return load<std::int32_t>(at);
    case kI64:
      return load<std::int64_t>(at);
    case kU64: {
      const auto value = load<std::uint64_t>(at);
      if (value > static_cast<std::uint64_t>(INT64_MAX)) return std::nullopt;
      return static_cast<std::int64_t>(value);
    }
    default:
      return std::nullopt;
  }
}

std::optional<double> decode_number(std::uint32_t type, const std::byte* at) {
  double value = 0;
  if (type == kF32) {
    const std::string shortest = fmt::format("{}", load<float>(at));
    std::from_chars(shortest.data(), shortest.data() + shortest.size(), value);
  } else if (type == kF64) {
    value = load<double>(at);
  } else if (const auto integer = decode_integer(type, at)) {
    value = static_cast<double>(*integer);
  } else {
    return std::nullopt;
  }
  if (!std::isfinite(value)) return std::nullopt;
  return value;
}

/// A name from a file for an error message: cut, and without what a terminal would act on.
std::string printable(std::string_view text) {
  constexpr std::size_t kLimit = 64;
  std::string out(text.substr(0, kLimit));
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = '?';
  }
  return out;
}

}  // namespace

/// Walks over the bytes of a file; no step goes past their end.
class GgufParser {
 public:
  GgufParser(std::span<const std::byte> file, std::string_view where) : file_(file) { out_.where_ = where; }

  GgufContents parse() {
    const std::string& where = out_.where_;
    if (file_.size() < 8 || std::memcmp(file_.data(), "GGUF", 4) != 0)
      fail("{} is not a GGUF file: it does not start with GGUF", where);
    at_ = 4;
    out_.version_ = number<std::uint32_t>("the version");
    // A version that only makes sense the other way round is that of a file for big-endian machines.
    if (out_.version_ >= 1u << 24) fail("{} is a big-endian GGUF file; only little-endian ones are read", where);
    if (out_.version_ < 1 || out_.version_ > 3)
      fail("{} is GGUF version {}; versions 1 to 3 are read", where, out_.version_);
    const std::uint64_t tensor_count = count("the number of tensors");
    const std::uint64_t key_count = count("the number of keys");
    for (std::uint64_t i = 0; i < key_count; ++i) read_key();
    if (out_.integer("split.count", 0) > 1) {
      fail("{} is part {} of {}; merge the parts first (llama-gguf-split --merge)", where,
           out_.integer("split.no", 0) + 1, out_.integer("split.count"));
    }
    constexpr std::int64_t kDefaultAlignment = 32;
    constexpr std::int64_t kAlignmentLimit = 1 << 20;
    const std::int64_t alignment = out_.integer("general.alignment", kDefaultAlignment);
    if (alignment <= 0 || alignment > kAlignmentLimit)
      fail("{}: general.alignment is {}, which makes no sense", where, alignment);
    alignment_ = static_cast<std::uint64_t>(alignment);
    std::vector<Placed> placed;
    // More than any model has; a number in a file is no reason to take more memory than that.
    constexpr std::uint64_t kUsualTensors = 4096;
    placed.reserve(static_cast<std::size_t>(std::min(tensor_count, kUsualTensors)));
    for (std::uint64_t i = 0; i < tensor_count; ++i) placed.push_back(read_tensor_info());
    const std::uint64_t start = round_up<std::uint64_t>(at_, alignment_);
    for (Placed& tensor : placed) place(std::move(tensor), start);
    return std::move(out_);
  }

 private:
  struct Placed {
    GgufTensor tensor;
    std::uint64_t offset;
  };
  using Value = GgufContents::Value;

  std::span<const std::byte> take(std::uint64_t size, std::string_view what) {
    if (size > file_.size() - at_) {
      fail("{} is cut off or damaged: {} at byte {} takes {} bytes, but only {} are left", out_.where_, what, at_, size,
           file_.size() - at_);
    }
    const auto part = file_.subspan(at_, static_cast<std::size_t>(size));
    at_ += static_cast<std::size_t>(size);
    return part;
  }

  template <typename T>
  T number(std::string_view what) {
    return load<T>(take(sizeof(T), what).data());
  }

  /// Counts and lengths had 32 bits in version 1.
  std::uint64_t count(std::string_view what) {
    return out_.version_ == 1 ? number<std::uint32_t>(what) : number<std::uint64_t>(what);
  }

  std::string_view string(std::string_view what) {
    const auto bytes = take(count(what), what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  void skip_array_elements(std::uint32_t type, std::uint64_t elements, int depth) {
    constexpr int kDepthLimit = 8;  // no known file nests at all
    if (depth > kDepthLimit) fail("{}: arrays are nested deeper than {} levels", out_.where_, kDepthLimit);
    if (const std::size_t size = fixed_size(type); size != 0) {
      take(checked_mul<std::uint64_t>(elements, size, out_.where_ + ": an array"), "an array");
      return;
    }
    // Each element takes bytes, so that a hostile count ends at the end of the file.
    for (std::uint64_t i = 0; i < elements; ++i) {
      if (type == kString) {
        string("a string in an array");
      } else if (type == kArray) {
        const auto inner = number<std::uint32_t>("the type of an array");
        skip_array_elements(inner, count("the length of an array"), depth + 1);
      } else {
        fail("{}: an array has elements of the unknown type {}", out_.where_, type);
      }
    }
  }

  void read_key() {
    const std::string key(string("a key"));
    Value value;
    value.type = number<std::uint32_t>("the type of a value");
    if (value.type == kString) {
      const std::string_view text = string("a value");
      value.bytes = std::as_bytes(std::span(text));
    } else if (value.type == kArray) {
      value.element_type = number<std::uint32_t>("the type of an array");
      value.count = count("the length of an array");
      const std::size_t begin = at_;
      skip_array_elements(value.element_type, value.count, 1);
      value.bytes = file_.subspan(begin, at_ - begin);
    } else {
      const std::size_t size = fixed_size(value.type);
      if (size == 0) fail("{}: the key {} has a value of the unknown type {}", out_.where_, printable(key), value.type);
      value.bytes = take(size, "a value");
    }
    if (!out_.values_.emplace(key, value).second) fail("{}: the key {} is there twice", out_.where_, printable(key));
  }

  Placed read_tensor_info() {
    constexpr std::uint32_t kRankLimit = 4;
    GgufTensor tensor;
    tensor.name = string("the name of a tensor");
    const std::string what = fmt::format("{}: tensor {}", out_.where_, printable(tensor.name));
    const auto rank = number<std::uint32_t>("the rank of a tensor");
    if (rank < 1 || rank > kRankLimit) fail("{} has {} dimensions; 1 to {} are possible", what, rank, kRankLimit);
    for (std::uint32_t i = 0; i < rank; ++i) {
      const std::uint64_t dim = count("a dimension");
      if (dim == 0 || dim > static_cast<std::uint64_t>(INT64_MAX))
        fail("{} has the impossible dimension {}", what, dim);
      tensor.shape.insert(tensor.shape.begin(), static_cast<std::int64_t>(dim));
    }
    const auto type = number<std::uint32_t>("the type of a tensor");
    const auto info = gguf_type_info(type);
    if (!info) {
      fail(
          "{} has the type number {}, which nibble does not read (it reads F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, "
          "Q8_0, Q4_K, Q6_K)",
          what, type);
    }
    tensor.info = *info;
    if (tensor.columns() % info->block_elements != 0) {
      fail("{} has rows of {} elements, no multiple of the {} in a block of {}", what, tensor.columns(),
           info->block_elements, info->name);
    }
    const auto offset = number<std::uint64_t>("the offset of a tensor");
    if (offset % alignment_ != 0) fail("{} lies at offset {}, which is not aligned to {}", what, offset, alignment_);
    return {std::move(tensor), offset};
  }

  void place(Placed placed, std::uint64_t start) {
    GgufTensor& tensor = placed.tensor;
    const std::string what = fmt::format("{}: tensor {}", out_.where_, printable(tensor.name));
    const std::int64_t blocks = element_count(tensor.shape) / tensor.info.block_elements;
    const auto size = static_cast<std::uint64_t>(checked_mul(blocks, tensor.info.block_bytes, what));
    const std::uint64_t begin = checked_add(start, placed.offset, what);
    if (begin > file_.size() || size > file_.size() - begin) {
      fail("{} takes {} bytes from byte {} on, but the file has {}: it is cut off or damaged", what, size, begin,
           file_.size());
    }
    tensor.bytes = file_.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(size));
    const std::string name = tensor.name;
    if (!out_.tensors_.emplace(name, std::move(tensor)).second) fail("{} is there twice", what);
  }

  std::span<const std::byte> file_;
  std::size_t at_ = 0;
  std::uint64_t alignment_ = 1;
  GgufContents out_;
};

GgufContents GgufContents::parse(std::span<const std::byte> file, std::string_view where) {
  return GgufParser(file, where).parse();
}

const GgufTensor* GgufContents::find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

const GgufContents::Value* GgufContents::value(std::string_view key) const {
  const auto it = values_.find(key);
  return it == values_.end() ? nullptr : &it->second;
}

const GgufContents::Value& GgufContents::require(std::string_view key) const {
  const Value* found = value(key);
  if (found == nullptr) fail("{} has no key {}", where_, key);
  return *found;
}

void GgufContents::refuse(std::string_view key, std::string_view expected) const {
  fail("{}: {} should be {}", where_, key, expected);
}

std::int64_t GgufContents::integer(std::string_view key) const {
  const Value& found = require(key);
  const auto decoded = decode_integer(found.type, found.bytes.data());
  if (!decoded) refuse(key, "an integer");
  return *decoded;
}

std::int64_t GgufContents::integer(std::string_view key, std::int64_t fallback) const {
  return has(key) ? integer(key) : fallback;
}

double GgufContents::number(std::string_view key) const {
  const Value& found = require(key);
  const auto decoded = decode_number(found.type, found.bytes.data());
  if (!decoded) refuse(key, "a finite number");
  return *decoded;
}

double GgufContents::number(std::string_view key, double fallback) const { return has(key) ? number(key) : fallback; }

bool GgufContents::boolean(std::string_view key, bool fallback) const {
  if (!has(key)) return fallback;
  const Value& found = require(key);
  if (found.type != kBool) refuse(key, "true or false");
  return load<std::uint8_t>(found.bytes.data()) != 0;
}

std::string_view GgufContents::text(std::string_view key) const {
  const Value& found = require(key);
  if (found.type != kString) refuse(key, "a string");
  return {reinterpret_cast<const char*>(found.bytes.data()), found.bytes.size()};
}

std::string_view GgufContents::text(std::string_view key, std::string_view fallback) const {
  return has(key) ? text(key) : fallback;
}

std::vector<std::int64_t> GgufContents::integers(std::string_view key) const {
  std::vector<std::int64_t> out;
  const Value* found = value(key);
  if (found == nullptr) return out;
  if (found->type != kArray) refuse(key, "an array of integers");
  for (std::uint64_t i = 0; i < found->count; ++i) {
    const auto decoded = decode_integer(found->element_type, found->bytes.data() + i * fixed_size(found->element_type));
    if (!decoded) refuse(key, "an array of integers");
    out.push_back(*decoded);
  }
  return out;
}

std::vector<double> GgufContents::numbers(std::string_view key) const {
  std::vector<double> out;
  const Value* found = value(key);
  if (found == nullptr) return out;
  if (found->type != kArray) refuse(key, "an array of numbers");
  for (std::uint64_t i = 0; i < found->count; ++i) {
    const auto decoded = decode_number(found->element_type, found->bytes.data() + i * fixed_size(found->element_type));
    if (!decoded) refuse(key, "an array of finite numbers");
    out.push_back(*decoded);
  }
  return out;
}

std::vector<std::string_view> GgufContents::texts(std::string_view key) const {
  std::vector<std::string_view> out;
  const Value* found = value(key);
  if (found == nullptr) return out;
  if (found->type != kArray || found->element_type != kString) refuse(key, "an array of strings");
  const std::byte* at = found->bytes.data();
  // The parser has walked these strings already: their lengths are inside of the file.
  for (std::uint64_t i = 0; i < found->count; ++i) {
    const std::size_t width = version_ == 1 ? 4 : 8;
    const std::uint64_t length = version_ == 1 ? load<std::uint32_t>(at) : load<std::uint64_t>(at);
    out.emplace_back(reinterpret_cast<const char*>(at + width), static_cast<std::size_t>(length));
    at += width + length;
  }
  return out;
}

}  // namespace nibble
