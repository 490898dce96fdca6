#include "formats/hub_cache.h"

#include "support/expect_error.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <optional>

namespace nibble {
namespace {

using test::expect_error;
using test::TempFolder;

/// Sets the variables that say where the cache is, and puts the old ones back.
class HubCacheTest : public testing::Test {
 protected:
  HubCacheTest() {
    for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"}) {
      const char* value = std::getenv(name);
      before_[name] = value == nullptr ? std::nullopt : std::optional<std::string>(value);
      ::unsetenv(name);
    }
  }
  ~HubCacheTest() override {
    for (const auto& [name, value] : before_) {
      if (value) {
        ::setenv(name.c_str(), value->c_str(), 1);
      } else {
        ::unsetenv(name.c_str());
      }
    }
  }
  static void set(const char* name, const std::string& value) { ::setenv(name, value.c_str(), 1); }

  TempFolder folder_;

 private:
  std::map<std::string, std::optional<std::string>> before_;
};

TEST_F(HubCacheTest, FindsTheCacheAsTheHubsLibraryDoes) {
  expect_error("none of HF_HUB_CACHE", [] { (void)hub_cache_folder(); });
  set("HOME", "/home/u");
  EXPECT_EQ(hub_cache_folder(), "/home/u/.cache/huggingface/hub");
  set("XDG_CACHE_HOME", "/xdg");
  EXPECT_EQ(hub_cache_folder(), "/xdg/huggingface/hub");
  set("HF_HOME", "~/hf");
  EXPECT_EQ(hub_cache_folder(), "/home/u/hf/hub");
  set("HF_HUB_CACHE", "/cache");
  EXPECT_EQ(hub_cache_folder(), "/cache");
}

TEST_F(HubCacheTest, TakesAFolderAsItIs) { EXPECT_EQ(resolve_model(folder_.path().string()), folder_.path()); }

TEST_F(HubCacheTest, FindsSnapshotsByBranchAndByCommit) {
  set("HF_HUB_CACHE", folder_.path().string());
  const auto main = folder_.write("models--owner--name/snapshots/0123abc/config.json", "{}").parent_path();
  const auto other = folder_.write("models--owner--name/snapshots/4567def/config.json", "{}").parent_path();
  folder_.write("models--owner--name/refs/main", "0123abc\n");
  folder_.write("models--owner--name/refs/pr/1", "4567def");
  EXPECT_EQ(resolve_model("owner/name"), main);
  EXPECT_EQ(resolve_model("owner/name", "pr/1"), other);
  EXPECT_EQ(resolve_model("owner/name", "4567def"), other);
  const auto bare = folder_.write("models--gpt2/snapshots/aa/config.json", "{}").parent_path();
  EXPECT_EQ(resolve_model("gpt2", "aa"), bare);
}

TEST_F(HubCacheTest, SaysHowToFetchWhatIsNotThere) {
  set("HF_HUB_CACHE", folder_.path().string());
  expect_error("not in the Hugging Face cache (" + folder_.path().string() +
                   "); fetch it with: hf download owner/name --revision v2",
               [] { resolve_model("owner/name", "v2"); });
  folder_.write("models--owner--name/refs/main", "0123abc");
  expect_error("but not its revision main; fetch it with: hf download owner/name --revision main",
               [] { resolve_model("owner/name"); });
  folder_.write("models--owner--name/snapshots/0123abc/tokenizer.json", "{}");
  expect_error("has no config.json: the download of owner/name was not finished", [] { resolve_model("owner/name"); });
  folder_.write("models--owner--name/refs/main", "../../x");
  expect_error("refs/main is damaged", [] { resolve_model("owner/name"); });
}

TEST_F(HubCacheTest, RefusesWhatIsNeitherFolderNorId) {
  set("HF_HUB_CACHE", folder_.path().string());
  for (const char* model : {"/absent/folder", "./absent", "a/b/c", "../x", "owner/..", "", "a b", "-x/y"}) {
    expect_error("neither a folder nor the id", [&] { resolve_model(model); });
  }
  expect_error("is not the name of a revision", [] { resolve_model("owner/name", "../../other"); });
  expect_error("is not the name of a revision", [] { resolve_model("owner/name", "/etc"); });
  const auto gguf = folder_.write("model.gguf", "GGUF");
  expect_error("nibble import-gguf FILE FOLDER", [&] { resolve_model(gguf.string()); });
}

}  // namespace
}  // namespace nibble
