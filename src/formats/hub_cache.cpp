#include "formats/hub_cache.h"

#include "core/error.h"
#include "core/file.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <optional>
#include <string_view>

namespace nibble {
namespace {

namespace fs = std::filesystem;

/// An environment variable, absent when empty, with a leading ~ replaced as Python's expanduser does.
std::optional<fs::path> folder_variable(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  const std::string_view text = value;
  const char* home = std::getenv("HOME");
  if (home != nullptr && (text == "~" || text.starts_with("~/")))
    return fs::path(home) / text.substr(std::min<std::size_t>(text.size(), 2));
  return fs::path(text);
}

/// Letters, digits, and - _ . within; what the hub allows in each half of an id and what is safe in a path.
bool is_hub_name(std::string_view part) {
  constexpr std::size_t kLongest = 96;  // the hub's own limit
  if (part.empty() || part.size() > kLongest || part.find("..") != std::string_view::npos || part.front() == '.' ||
      part.front() == '-')
    return false;
  return std::all_of(part.begin(), part.end(),
                     [](unsigned char c) { return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.'; });
}

bool is_hub_id(std::string_view model) {
  const auto slash = model.find('/');
  if (slash == std::string_view::npos) return is_hub_name(model);
  return is_hub_name(model.substr(0, slash)) && is_hub_name(model.substr(slash + 1));
}

/// Branches may have slashes ("refs/pr/1"), but no part that leads out of the cache.
bool is_revision(const std::string& revision) {
  const fs::path path(revision);
  return !revision.empty() && revision.find('\0') == std::string::npos && !path.is_absolute() &&
         std::none_of(path.begin(), path.end(), [](const fs::path& part) { return part == ".."; });
}

std::string trimmed(std::string text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) text.pop_back();
  return text;
}

bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

}  // namespace

fs::path hub_cache_folder() {
  // The second name is what the first was called until 2023; the hub's library still honours it.
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}) {
    if (const auto folder = folder_variable(name)) return *folder;
  }
  if (const auto folder = folder_variable("HF_HOME")) return *folder / "hub";
  if (const auto folder = folder_variable("XDG_CACHE_HOME")) return *folder / "huggingface" / "hub";
  if (const auto folder = folder_variable("HOME")) return *folder / ".cache" / "huggingface" / "hub";
  fail("the Hugging Face cache cannot be found: none of HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME and HOME is set");
}

fs::path resolve_model(const std::string& model, const std::string& revision) {
  if (is_folder(model)) return model;
  std::error_code ignored;
  if (fs::is_regular_file(model, ignored)) {
    const bool gguf = fs::path(model).extension() == ".gguf";
    fail("{} is a file, and a model is a folder{}", model,
         gguf ? "; turn it into one with `nibble import-gguf FILE FOLDER`" : "");
  }
  if (!is_hub_id(model))
    fail("{} is neither a folder nor the id of a model on the Hugging Face hub (such as owner/name)", model);
  if (!is_revision(revision)) fail("{} is not the name of a revision", revision);

  const fs::path cache = hub_cache_folder();
  std::string name = "models--" + model;
  if (const auto slash = name.find('/'); slash != std::string::npos) name.replace(slash, 1, "--");
  const fs::path repository = cache / name;
  const std::string fetch = fmt::format("fetch it with: hf download {} --revision {}", model, revision);
  if (!is_folder(repository))
    fail("{} is no folder here, and not in the Hugging Face cache ({}); {}", model, cache.string(), fetch);

  std::string commit = revision;
  if (const fs::path ref = repository / "refs" / revision; fs::is_regular_file(ref, ignored)) {
    constexpr std::size_t kRefLimit = 256;  // a commit hash has 40 characters
    commit = trimmed(read_text_file(ref, kRefLimit));
    if (!is_hub_name(commit)) fail("{} is damaged: it should hold a commit hash; {}", ref.string(), fetch);
  }
  fs::path snapshot = repository / "snapshots" / commit;
  if (!is_folder(snapshot))
    fail("{} is in the Hugging Face cache ({}), but not its revision {}; {}", model, repository.string(), revision,
         fetch);
  if (!fs::exists(snapshot / "config.json", ignored)) {
    fail("{} has no config.json: the download of {} was not finished; {}", snapshot.string(), model, fetch);
  }
  return snapshot;
}

}  // namespace nibble
