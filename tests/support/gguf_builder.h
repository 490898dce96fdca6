// Makes the bytes of a GGUF file, right or wrong, key by key.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::test {

class GgufBuilder {
 public:
  explicit GgufBuilder(std::uint32_t version = 3) : version_(version) {}

  template <typename T>
  static std::string raw(T value) {
    std::string out(sizeof value, '\0');
    std::memcpy(out.data(), &value, sizeof value);
    return out;
  }
  /// A count or a length: 32 bits in version 1, else 64.
  std::string count(std::uint64_t n) const { return version_ == 1 ? raw(static_cast<std::uint32_t>(n)) : raw(n); }
  std::string text(std::string_view value) const { return count(value.size()) + std::string(value); }

  GgufBuilder& key(std::string_view name, std::uint32_t type, const std::string& bytes) {
    keys_ += text(name) + raw(type) + bytes;
    ++key_count;
    return *this;
  }
  GgufBuilder& u32(std::string_view name, std::uint32_t value) { return key(name, 4, raw(value)); }
  GgufBuilder& f32(std::string_view name, float value) { return key(name, 6, raw(value)); }
  GgufBuilder& boolean(std::string_view name, bool value) {
    return key(name, 7, raw(static_cast<std::uint8_t>(value)));
  }
  GgufBuilder& string(std::string_view name, std::string_view value) { return key(name, 8, text(value)); }
  GgufBuilder& strings(std::string_view name, const std::vector<std::string>& values) {
    std::string bytes = raw(std::uint32_t{8}) + count(values.size());
    for (const std::string& value : values) bytes += text(value);
    return key(name, 9, bytes);
  }
  template <typename T>
  GgufBuilder& array(std::string_view name, std::uint32_t type, const std::vector<T>& values) {
    std::string bytes = raw(type) + count(values.size());
    for (const T value : values) bytes += raw(value);
    return key(name, 9, bytes);
  }

  /// `dims` as the file has them: fastest first. The data is padded to 32 bytes.
  GgufBuilder& tensor(std::string_view name, std::uint32_t type, const std::vector<std::uint64_t>& dims,
                      const std::string& data) {
    return tensor_info(name, type, dims, data_.size(), data);
  }
  GgufBuilder& tensor_info(std::string_view name, std::uint32_t type, const std::vector<std::uint64_t>& dims,
                           std::uint64_t offset, const std::string& data = "") {
    infos_ += text(name) + raw(static_cast<std::uint32_t>(dims.size()));
    for (const std::uint64_t dim : dims) infos_ += count(dim);
    infos_ += raw(type) + raw(offset);
    data_ += data;
    data_.resize((data_.size() + 31) / 32 * 32);
    ++tensor_count;
    return *this;
  }
  /// An F32 tensor whose values are value(0), value(1), ...
  GgufBuilder& floats(std::string_view name, const std::vector<std::uint64_t>& dims,
                      const std::function<float(std::size_t)>& value) {
    std::size_t elements = 1;
    for (const std::uint64_t dim : dims) elements *= dim;
    std::string data;
    for (std::size_t i = 0; i < elements; ++i) data += raw(value(i));
    return tensor(name, 0, dims, data);
  }

  std::string bytes() const {
    std::string out = "GGUF" + raw(version_) + count(tensor_count) + count(key_count) + keys_ + infos_;
    out.resize((out.size() + 31) / 32 * 32);
    return out + data_;
  }

  std::uint64_t tensor_count = 0;
  std::uint64_t key_count = 0;

 private:
  std::uint32_t version_;
  std::string keys_, infos_, data_;
};

}  // namespace nibble::test
