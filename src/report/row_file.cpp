#include "report/row_file.h"

#include "core/error.h"
#include "core/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

namespace nibble {
namespace {

// Results of many years fit in it; more is some other file that was named by mistake.
constexpr std::size_t kLargestFile = std::size_t{256} << 20;

std::string reason() { return std::generic_category().message(errno); }

}  // namespace

RowFile::RowFile(std::filesystem::path path, std::string_view header, bool overwrite) : path_(std::move(path)) {
  std::string before;
  struct stat info{};
  if (!overwrite && ::stat(path_.c_str(), &info) == 0 && S_ISREG(info.st_mode))
    before = read_text_file(path_, kLargestFile);
  const std::string first = before.substr(0, before.find('\n'));
  if (!before.empty() && !header.empty() && first != header) {
    fail_usage(
        "{} has other columns than this run (\"{}\"); name another folder or file, or give --overwrite to replace it",
        path_.string(), first.substr(0, 80));
  }
  const int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (overwrite ? O_TRUNC : 0);
  fd_ = ::open(path_.c_str(), flags, 0666);
  if (fd_ < 0) fail("cannot write {}: {}", path_.string(), reason());
  try {
    if (before.empty() && !header.empty()) append(header);
    // A run that was cut off in the middle of a line: what comes now begins on its own.
    if (!before.empty() && before.back() != '\n') append("");
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

RowFile::~RowFile() { ::close(fd_); }

void RowFile::append(std::string_view line) {
  // One write a line: two runs that share a file do not mix within a line.
  std::string text(line);
  text += '\n';
  std::size_t written = 0;
  while (written < text.size()) {
    const ssize_t n = ::write(fd_, text.data() + written, text.size() - written);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("cannot write {}: {}", path_.string(), reason());
    written += static_cast<std::size_t>(n);
  }
  // EINVAL and EROFS: a pipe or a device, which has nothing to sync.
  if (::fsync(fd_) != 0 && errno != EINVAL && errno != EROFS) fail("cannot write {}: {}", path_.string(), reason());
}

}  // namespace nibble
