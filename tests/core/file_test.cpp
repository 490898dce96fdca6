#include "core/file.h"

#include "support/expect_error.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <vector>

namespace nibble {
namespace {

using test::expect_error;
using test::TempFolder;

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::size_t entries_in(const std::filesystem::path& folder) {
  std::size_t n = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder)) ++n;
  return n;
}

TEST(MappedFileTest, ShowsTheWholeFileAndSurvivesMoveAndDrop) {
  const TempFolder folder;
  std::string content(10'000, 'a');
  content[9'999] = 'z';
  MappedFile first(folder.write("data", content));
  const MappedFile second = std::move(first);
  EXPECT_EQ(text_of(second.bytes()), content);
  second.drop(second.bytes().subspan(100, 5'000));
  EXPECT_EQ(text_of(second.bytes()), content);
  EXPECT_TRUE(first.bytes().empty());
}

TEST(MappedFileTest, AnEmptyFileHasNoBytes) {
  const TempFolder folder;
  EXPECT_TRUE(MappedFile(folder.write("empty", "")).bytes().empty());
}

TEST(MappedFileTest, SaysWhyAFileCannotBeRead) {
  const TempFolder folder;
  expect_error("No such file", [&] { MappedFile(folder.path() / "absent"); });
  expect_error("it is a folder", [&] { MappedFile(folder.path()); });
  const auto pipe = folder.path() / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  expect_error("not a regular file", [&] { MappedFile{pipe}; });
  const auto secret = folder.write("secret", "x");
  std::filesystem::permissions(secret, std::filesystem::perms::none);
  if (::geteuid() != 0) expect_error("Permission denied", [&] { MappedFile{secret}; });
}

TEST(MappedFileTest, RefusesToDropWhatIsNotItsOwn) {
  const TempFolder folder;
  const MappedFile file(folder.write("data", "abc"));
  const std::vector<std::byte> other(8);
  expect_error("not part of", [&] { file.drop(other); });
}

TEST(ReadTextFileTest, ReadsUpToItsLimit) {
  const TempFolder folder;
  const auto path = folder.write("text", "12345");
  EXPECT_EQ(read_text_file(path, 5), "12345");
  expect_error("has 5 bytes, more than the 4", [&] { read_text_file(path, 4); });
  // A device does not tell its size beforehand.
  expect_error("longer than the 1000 bytes", [&] { read_text_file("/dev/zero", 1000); });
}

TEST(AtomicFileTest, AppearsOnlyWhenCommitted) {
  const TempFolder folder;
  const auto path = folder.write("out", "old");
  {
    AtomicFile file(path);
    file.write("new");
    EXPECT_EQ(file.size(), 3U);
    EXPECT_EQ(read_text_file(path, 100), "old");
    file.commit();
    expect_error("committed", [&] { file.commit(); });
    expect_error("committed", [&] { file.write("more"); });
  }
  EXPECT_EQ(read_text_file(path, 100), "new");
  EXPECT_EQ(entries_in(folder.path()), 1U);
}

TEST(AtomicFileTest, LeavesNothingBehindWithoutCommit) {
  const TempFolder folder;
  {
    AtomicFile(folder.path() / "out").write("half");
  }
  EXPECT_EQ(entries_in(folder.path()), 0U);
}

TEST(AtomicFileTest, WritesAtOffsetsInAnyOrder) {
  const TempFolder folder;
  const auto path = folder.path() / "out";
  const std::string_view head = "ab";
  const std::string_view tail = "cd";
  AtomicFile file(path);
  file.write_at(2, std::as_bytes(std::span(tail)));
  file.write_at(0, std::as_bytes(std::span(head)));
  file.write("ef");
  file.commit();
  EXPECT_EQ(read_text_file(path, 100), "abcdef");
}

TEST(AtomicFileTest, ReportsAFullDisk) {
  std::ofstream probe("/dev/full");
  if (!probe) GTEST_SKIP() << "this system has no /dev/full";
  AtomicFile file("/dev/full");
  expect_error("No space left", [&] { file.write("text"); });
}

TEST(AtomicFileTest, SaysWhyAFileCannotBeMade) {
  const TempFolder folder;
  expect_error("No such file", [&] { AtomicFile(folder.path() / "absent" / "out"); });
  expect_error("it is a folder", [&] { AtomicFile{folder.path()}; });
}

TEST(AtomicFileTest, HonoursTheUmask) {
  const TempFolder folder;
  const auto path = folder.path() / "out";
  const mode_t before = ::umask(022);
  write_text_file(path, "x");
  ::umask(before);
  EXPECT_EQ(std::filesystem::status(path).permissions(), std::filesystem::perms{0644});
}

}  // namespace
}  // namespace nibble
