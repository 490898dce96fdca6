// A file of results that grows a line at a time, so that what has been measured survives whatever comes after.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace nibble {

class RowFile {
 public:
  /// Opens for appending. A file that is not there, or is empty, gets `header` as its first line (none where it is
  /// empty). A file whose first line is `header` is added to. Any other file is a UsageError that says what to do,
  /// unless `overwrite`, which puts a new one in its place. Throws Error when it cannot be read or written.
  RowFile(std::filesystem::path path, std::string_view header, bool overwrite);
  RowFile(const RowFile&) = delete;
  RowFile& operator=(const RowFile&) = delete;
  ~RowFile();

  /// Adds one line and syncs it to the disk. `line` has no line end.
  void append(std::string_view line);

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  int fd_ = -1;
};

}  // namespace nibble
