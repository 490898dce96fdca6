// Files: read by memory map, written beside and renamed, so that a half-written output never replaces a good one.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace nibble {

/// A read-only memory map of a whole regular file. Throws Error (with the path and the system's reason) when it cannot
/// be read.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

  /// Tells the kernel that these pages, once read, are not needed any more: they leave the resident set.
  void drop(std::span<const std::byte> part) const;

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// The file's text. Throws Error when it cannot be read or is longer than `limit` bytes.
std::string read_text_file(const std::filesystem::path& path, std::size_t limit);

/// Writes a file under a temporary name in the same folder; commit() syncs it and renames it into place. Destroyed
/// without commit(), it leaves nothing behind. Every failure (no space, no permission) is an Error with path and
/// reason. A path that names a pipe or a device (/dev/stdout) is written to directly.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  /// Writes at a byte offset, in any order; what write() adds later goes after the end. Error on a pipe or a device.
  void write_at(std::size_t offset, std::span<const std::byte> bytes);
  /// Bytes written so far.
  std::size_t size() const { return size_; }
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int fd_ = -1;
  std::size_t size_ = 0;
};

/// AtomicFile in one call.
void write_text_file(const std::filesystem::path& path, std::string_view text);

}  // namespace nibble
