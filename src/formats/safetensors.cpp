#include "formats/safetensors.h"

#include "core/checked.h"
#include "formats/json.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <cstring>
#include <optional>

namespace nibble {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are read in place, and files are little-endian");

constexpr std::size_t kLengthBytes = 8;
/// The limit of the reference implementation.
constexpr std::uint64_t kHeaderLimit = 100'000'000;
/// object of tensors > tensor entry > shape or offsets.
constexpr int kHeaderDepth = 3;

/// The format's names are nibble's in upper case, all but one.
std::string format_name(DType dtype) {
  if (dtype == DType::boolean) return "BOOL";
  std::string name(name_of(dtype));
  for (char& c : name) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

std::optional<DType> dtype_from_format(const std::string& name) {
  constexpr std::array kAll = {DType::f64,     DType::f32,     DType::f16,         DType::bf16,        DType::f8_e4m3,
                               DType::f8_e5m2, DType::f8_e8m0, DType::f8_e4m3fnuz, DType::f8_e5m2fnuz, DType::f6_e2m3,
                               DType::f6_e3m2, DType::f4,      DType::c64,         DType::i64,         DType::i32,
                               DType::i16,     DType::i8,      DType::u64,         DType::u32,         DType::u16,
                               DType::u8,      DType::boolean};
  for (const DType dtype : kAll) {
    if (format_name(dtype) == name) return dtype;
  }
  return std::nullopt;
}

/// The bytes of a tensor, which must be a whole number.
std::size_t size_in_bytes(DType dtype, const Shape& shape, const std::string& what) {
  const auto bits =
      checked_mul(static_cast<std::size_t>(element_count(shape)), static_cast<std::size_t>(bits_of(dtype)), what);
  if (bits % 8 != 0)
    fail("{}: {} elements of type {} are no whole number of bytes", what, to_string(shape), name_of(dtype));
  return bits / 8;
}

std::uint64_t unsigned_of(const nlohmann::json& value, const std::string& what) {
  if (!value.is_number_unsigned()) fail("{} should be a non-negative integer, found {}", what, json_excerpt(value));
  return value.get<std::uint64_t>();
}

struct Entry {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

Entry parse_entry(const std::string& name, const nlohmann::json& value, std::string_view where) {
  const std::string what = fmt::format("{}: tensor {}", where, name);
  if (!value.is_object()) fail("{}: its entry in the header should be an object, found {}", what, json_excerpt(value));
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!value.contains(key)) fail("{}: its entry in the header has no {}", what, key);
  }
  Entry entry;
  entry.name = name;
  const nlohmann::json& dtype = value["dtype"];
  const auto known = dtype.is_string() ? dtype_from_format(dtype.get<std::string>()) : std::nullopt;
  if (!known) fail("{}: its dtype {} is not one of the safetensors format", what, json_excerpt(dtype));
  entry.dtype = *known;
  const nlohmann::json& shape = value["shape"];
  if (!shape.is_array()) fail("{}: its shape should be a list, found {}", what, json_excerpt(shape));
  for (const nlohmann::json& dim : shape) {
    const std::uint64_t n = unsigned_of(dim, what + ": a dimension");
    if (n > static_cast<std::uint64_t>(INT64_MAX)) fail("{}: its dimension {} is too large", what, n);
    entry.shape.push_back(static_cast<std::int64_t>(n));
  }
  const nlohmann::json& offsets = value["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2) {
    fail("{}: its data_offsets should be two integers, found {}", what, json_excerpt(offsets));
  }
  entry.begin = unsigned_of(offsets[0], what + ": the begin of its data");
  entry.end = unsigned_of(offsets[1], what + ": the end of its data");
  if (entry.end < entry.begin) fail("{}: its data ends at {}, before it begins at {}", what, entry.end, entry.begin);
  const std::size_t expected = size_in_bytes(entry.dtype, entry.shape, what);
  if (entry.end - entry.begin != expected) {
    fail("{}: {} of shape {} takes {} bytes, but the header gives it {}", what, name_of(entry.dtype),
         to_string(entry.shape), expected, entry.end - entry.begin);
  }
  return entry;
}

}  // namespace

SafetensorsHeader parse_safetensors(std::span<const std::byte> file, std::string_view where) {
  if (file.size() < kLengthBytes) {
    fail("{} has {} bytes: too few for a safetensors file; it may be an unfinished download", where, file.size());
  }
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), kLengthBytes);
  if (length > kHeaderLimit)
    fail("{}: the header would have {} bytes, more than the {} allowed; this is no safetensors file", where, length,
         kHeaderLimit);
  if (length > file.size() - kLengthBytes) {
    fail("{} is cut off: its header has {} bytes, but only {} follow the length field", where, length,
         file.size() - kLengthBytes);
  }
  const auto* text = reinterpret_cast<const char*>(file.data() + kLengthBytes);
  if (length == 0 || text[0] != '{')
    fail("{}: the header does not start with an opening brace; this is no safetensors file", where);

  const nlohmann::json json =
      parse_json({text, static_cast<std::size_t>(length)}, fmt::format("{} (header)", where), kHeaderDepth);
  SafetensorsHeader header;
  header.bytes = file.first(kLengthBytes + static_cast<std::size_t>(length));
  const std::span<const std::byte> data = file.subspan(header.bytes.size());

  std::vector<Entry> entries;
  for (const auto& [name, value] : json.items()) {
    if (name != "__metadata__") {
      entries.push_back(parse_entry(name, value, where));
      continue;
    }
    if (!value.is_object()) fail("{}: __metadata__ should be an object, found {}", where, json_excerpt(value));
    for (const auto& [key, text_value] : value.items()) {
      if (!text_value.is_string())
        fail("{}: __metadata__.{} should be a string, found {}", where, key, json_excerpt(text_value));
      header.metadata.emplace(key, text_value.get<std::string>());
    }
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  std::uint64_t position = 0;
  for (Entry& entry : entries) {
    if (entry.begin != position) {
      fail(
          "{}: tensor {} begins at byte {} of the data, where {} was expected: tensors must follow each other without "
          "holes or overlaps",
          where, entry.name, entry.begin, position);
    }
    if (entry.end > data.size()) {
      fail("{} is cut off: tensor {} ends at byte {} of the data, of which there are {}; download it again", where,
           entry.name, entry.end, data.size());
    }
    position = entry.end;
    const auto bytes =
        data.subspan(static_cast<std::size_t>(entry.begin), static_cast<std::size_t>(entry.end - entry.begin));
    header.tensors.emplace(std::move(entry.name), TensorView{entry.dtype, std::move(entry.shape), bytes});
  }
  if (position != data.size()) {
    fail("{}: {} bytes of data belong to no tensor (the tensors end at byte {} of {})", where, data.size() - position,
         position, data.size());
  }
  return header;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : file_(path), header_(parse_safetensors(file_.bytes(), path.string())) {}

const TensorView* SafetensorsFile::find(std::string_view name) const {
  const auto it = header_.tensors.find(name);
  return it == header_.tensors.end() ? nullptr : &it->second;
}

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorDeclaration> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : path_(path), file_(path) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorDeclaration& a, const TensorDeclaration& b) {
    return bits_of(a.dtype) > bits_of(b.dtype);
  });
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (!metadata.empty()) json["__metadata__"] = metadata;
  for (const TensorDeclaration& tensor : tensors) {
    const std::string what = fmt::format("{}: tensor {}", path.string(), tensor.name);
    const std::size_t size = size_in_bytes(tensor.dtype, tensor.shape, what);
    const Slot slot{total_size_, checked_add(total_size_, size, what), 0};
    if (tensor.name == "__metadata__" || !slots_.emplace(tensor.name, slot).second) {
      fail("{} cannot be written: the name is taken", what);
    }
    total_size_ = slot.end;
    json[tensor.name] = {
        {"dtype", format_name(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {slot.begin, slot.end}}};
  }
  std::string text = json.dump();
  text.resize(round_up(text.size(), kLengthBytes), ' ');
  if (text.size() > kHeaderLimit)
    fail("{}: {} tensors are too many for one safetensors file", path.string(), tensors.size());
  const std::uint64_t length = text.size();
  file_.write(std::as_bytes(std::span(&length, 1)));
  file_.write(text);
  data_start_ = file_.size();
}

void SafetensorsWriter::append(std::string_view name, std::span<const std::byte> bytes) {
  const auto it = slots_.find(name);
  if (it == slots_.end()) fail("{}: tensor {} was written without having been declared", path_.string(), name);
  Slot& slot = it->second;
  if (bytes.size() > slot.end - slot.begin - slot.written) {
    fail("{}: tensor {} was declared with {} bytes, and more were written", path_.string(), name,
         slot.end - slot.begin);
  }
  file_.write_at(data_start_ + slot.begin + slot.written, bytes);
  slot.written += bytes.size();
}

void SafetensorsWriter::commit() {
  for (const auto& [name, slot] : slots_) {
    if (slot.written != slot.end - slot.begin) {
      fail("{}: tensor {} has {} of its {} bytes", path_.string(), name, slot.written, slot.end - slot.begin);
    }
  }
  file_.commit();
}

}  // namespace nibble
