#include "report/row_file.h"

#include "core/file.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

std::string content(const std::filesystem::path& path) { return read_text_file(path, 1 << 20); }

TEST(RowFile, StartsWithTheHeaderAndGrows) {
  const test::TempFolder folder;
  const auto path = folder.path() / "rows.csv";
  {
    RowFile file(path, "a, b", false);
    EXPECT_EQ(content(path), "a, b\n");
    file.append("1,2");
    EXPECT_EQ(content(path), "a, b\n1,2\n");
  }
  RowFile again(path, "a, b", false);
  again.append("3,4");
  EXPECT_EQ(content(path), "a, b\n1,2\n3,4\n");
}

TEST(RowFile, RefusesAnotherHeaderUnlessToldToOverwrite) {
  const test::TempFolder folder;
  const auto path = folder.write("rows.csv", "other, columns\n9,9\n");
  test::expect_error("--overwrite", [&] { RowFile(path, "a, b", false); });
  EXPECT_THROW(RowFile(path, "a, b", false), UsageError);
  EXPECT_EQ(content(path), "other, columns\n9,9\n");
  RowFile(path, "a, b", true).append("1,2");
  EXPECT_EQ(content(path), "a, b\n1,2\n");
}

TEST(RowFile, AHeaderThatOnlyBeginsTheSameIsAnother) {
  const test::TempFolder folder;
  const auto path = folder.write("rows.csv", "a, b, c\n");
  EXPECT_THROW(RowFile(path, "a, b", false), UsageError);
}

TEST(RowFile, ALineThatWasCutOffIsEnded) {
  const test::TempFolder folder;
  const auto path = folder.write("rows.csv", "a, b\n1,");
  RowFile(path, "a, b", false).append("3,4");
  EXPECT_EQ(content(path), "a, b\n1,\n3,4\n");
}

TEST(RowFile, JsonLinesHaveNoHeader) {
  const test::TempFolder folder;
  const auto path = folder.path() / "rows.jsonl";
  RowFile(path, "", false).append("{}");
  RowFile(path, "", false).append("{}");
  EXPECT_EQ(content(path), "{}\n{}\n");
}

TEST(RowFile, SaysWhatCannotBeWritten) {
  const test::TempFolder folder;
  test::expect_error("cannot write", [&] { RowFile(folder.path() / "no" / "such" / "rows.csv", "a", false); });
}

TEST(RowFile, AFullDiskIsASentence) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "this system has no /dev/full";
  test::expect_error("cannot write /dev/full", [] { RowFile("/dev/full", "a, b", false); });
}

}  // namespace
}  // namespace nibble
