#include "core/file.h"

#include "core/checked.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

namespace nibble {
namespace {

/// A descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

std::string reason(int error) { return std::generic_category().message(error); }

/// Opens a regular file to read. O_NONBLOCK has no effect on one, and keeps a named pipe from blocking the program.
int open_to_read(const std::filesystem::path& path, struct stat& info) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail("cannot read {}: {}", path.string(), reason(errno));
  if (::fstat(fd, &info) != 0) {
    const int error = errno;
    ::close(fd);
    fail("cannot read {}: {}", path.string(), reason(error));
  }
  if (S_ISDIR(info.st_mode)) {
    ::close(fd);
    fail("cannot read {}: it is a folder, and a file is expected", path.string());
  }
  return fd;
}

void write_all(int fd, std::span<const std::byte> bytes, const std::filesystem::path& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      fail("cannot write {}: {}", path.string(), reason(errno));
    }
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  struct stat info{};
  const Descriptor fd(open_to_read(path, info));
  if (!S_ISREG(info.st_mode)) fail("cannot read {}: it is not a regular file", path.string());
  size_ = static_cast<std::size_t>(info.st_size);
  if (size_ == 0) return;
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (address == MAP_FAILED) {
    fail("cannot map {} ({} bytes) into memory: {}", path.string(), size_, reason(errno));
  }
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::drop(std::span<const std::byte> part) const {
  if (part.empty()) return;
  const auto base = reinterpret_cast<std::uintptr_t>(data_);
  const auto first = reinterpret_cast<std::uintptr_t>(part.data());
  if (first < base || first - base > size_ || part.size() > size_ - (first - base)) {
    fail("a range that is not part of {} was to be dropped from memory", path_.string());
  }
  // Whole pages only: a page shared with a neighbour goes too, and comes back from the page cache when it is read.
  const std::uintptr_t page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const std::uintptr_t begin = first / page * page;
  const std::uintptr_t end = first + part.size();
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

std::string read_text_file(const std::filesystem::path& path, std::size_t limit) {
  struct stat info{};
  const Descriptor fd(open_to_read(path, info));
  if (S_ISREG(info.st_mode) && static_cast<std::size_t>(info.st_size) > limit) {
    fail("{} has {} bytes, more than the {} that such a file may have", path.string(), info.st_size, limit);
  }
  std::string text;
  if (S_ISREG(info.st_mode)) text.reserve(static_cast<std::size_t>(info.st_size));
  char buffer[1 << 16];
  while (true) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0) {
      if (errno == EINTR) continue;
      fail("cannot read {}: {}", path.string(), reason(errno));
    }
    if (n == 0) return text;
    text.append(buffer, static_cast<std::size_t>(n));
    if (text.size() > limit) fail("{} is longer than the {} bytes that such a file may have", path.string(), limit);
  }
}

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  struct stat info{};
  if (::stat(path_.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
    if (S_ISDIR(info.st_mode)) fail("cannot write {}: it is a folder", path_.string());
    // A pipe or a device (/dev/stdout) cannot be replaced by renaming: it is written to directly.
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd_ < 0) fail("cannot write {}: {}", path_.string(), reason(errno));
    return;
  }
  static std::atomic<unsigned> counter{0};
  const std::filesystem::path folder = path_.has_parent_path() ? path_.parent_path() : std::filesystem::path(".");
  constexpr int kAttempts = 100;  // names left behind by processes that were killed are skipped
  for (int attempt = 0; attempt < kAttempts && fd_ < 0; ++attempt) {
    temporary_ = folder / fmt::format(".{}.{}-{}.tmp", path_.filename().string(), ::getpid(), counter.fetch_add(1));
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ < 0 && errno != EEXIST) break;
  }
  if (fd_ < 0) fail("cannot write {}: {} ({})", path_.string(), reason(errno), temporary_.string());
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  if (fd_ < 0) fail("{} was written to after it had been committed", path_.string());
  write_all(fd_, bytes, path_);
  size_ += bytes.size();
}

void AtomicFile::write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

void AtomicFile::write_at(std::size_t offset, std::span<const std::byte> bytes) {
  if (fd_ < 0) fail("{} was written to after it had been committed", path_.string());
  const std::size_t end = checked_add(offset, bytes.size(), "an offset in a file");
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0) {
      if (errno == EINTR) continue;
      fail("cannot write {}: {}", path_.string(), reason(errno));
    }
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::size_t>(n);
  }
  if (end > size_) size_ = end;
  // What write() adds goes after all that there is.
  if (::lseek(fd_, static_cast<off_t>(size_), SEEK_SET) < 0) fail("cannot write {}: {}", path_.string(), reason(errno));
}

void AtomicFile::commit() {
  if (fd_ < 0) fail("{} was committed twice", path_.string());
  const bool renames = !temporary_.empty();
  if (renames && ::fsync(fd_) != 0) fail("cannot write {}: {}", path_.string(), reason(errno));
  if (::close(std::exchange(fd_, -1)) != 0) {
    const int error = errno;
    if (renames) ::unlink(temporary_.c_str());
    fail("cannot write {}: {}", path_.string(), reason(error));
  }
  if (!renames) return;
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary_.c_str());
    fail("cannot write {}: {}", path_.string(), reason(error));
  }
  // The new name itself must survive a crash too; a file system that cannot sync a folder is no reason to fail.
  const std::filesystem::path folder = path_.has_parent_path() ? path_.parent_path() : std::filesystem::path(".");
  const Descriptor directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() >= 0) ::fsync(directory.get());
}

void write_text_file(const std::filesystem::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

}  // namespace nibble
