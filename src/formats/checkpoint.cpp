#include "formats/checkpoint.h"

#include "core/checked.h"
#include "formats/json.h"

#include <xxhash.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <map>
#include <numeric>

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSuffix = ".safetensors";
constexpr std::string_view kIndexSuffix = ".safetensors.index.json";
/// A cache of repacked weights that AutoGPTQ leaves in model folders: not the model itself.
constexpr std::string_view kMarlinCache = "autogptq_model_gptq_marlin.safetensors";

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

/// A path from an index or a config that must stay inside the folder. Links are followed: the hub's cache is made of
/// them.
fs::path inside(const fs::path& folder, const std::string& name, std::string_view where) {
  const fs::path relative(name);
  const bool escapes = relative.is_absolute() ||
                       std::any_of(relative.begin(), relative.end(), [](const fs::path& part) { return part == ".."; });
  if (name.empty() || escapes || name.find('\0') != std::string::npos) {
    fail("{} names the weight file {}, which is not inside of {}", where,
         nlohmann::json(name).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace), folder.string());
  }
  return relative;
}

/// The names of the folder's *.safetensors files, and of everything, for the error that lists them.
std::vector<std::string> listing(const fs::path& folder) {
  std::error_code error;
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error))
    names.push_back(entry.path().filename().string());
  if (error) fail("cannot read the folder {}: {}", folder.string(), error.message());
  std::sort(names.begin(), names.end());
  return names;
}

/// Base names that a GPTQ configuration in this folder implies, best first. Values that make no sense imply nothing
/// here; reading the configuration itself reports them.
std::vector<std::string> gptq_base_names(const fs::path& folder) {
  std::vector<std::string> bases;
  const auto add_from = [&bases](const nlohmann::json& config) {
    if (!config.is_object()) return;
    if (const auto base = config.find("model_file_base_name"); base != config.end() && base->is_string()) {
      bases.push_back(base->get<std::string>());
    }
    const auto bits = config.find("bits");
    const auto group_size = config.find("group_size");
    if (bits != config.end() && bits->is_number_integer() && group_size != config.end() &&
        group_size->is_number_integer()) {
      bases.push_back(fmt::format("gptq_model-{}bit-{}g", bits->get<std::int64_t>(), group_size->get<std::int64_t>()));
    }
  };
  if (is_file(folder / "config.json")) {
    const nlohmann::json config = read_json_file(folder / "config.json");
    if (config.is_object() && config.contains("quantization_config")) add_from(config["quantization_config"]);
  }
  for (const char* name : {"quantize_config.json", "quantization_config.json"}) {
    if (is_file(folder / name)) add_from(read_json_file(folder / name));
  }
  return bases;
}

std::string shorten_list(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 12;
  std::string text;
  for (std::size_t i = 0; i < names.size() && i < kShown; ++i) text += (i == 0 ? "" : ", ") + names[i];
  if (names.size() > kShown) text += fmt::format(" and {} more", names.size() - kShown);
  return names.empty() ? "nothing" : text;
}

/// The number of single-character edits between two names.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

}  // namespace

WeightFiles find_weight_files(const fs::path& folder) {
  std::vector<std::string> bases;
  for (const std::string& base : gptq_base_names(folder)) {
    inside(folder, base, folder.string() + "'s quantisation configuration");
    bases.push_back(base);
  }
  bases.push_back("model");
  for (const std::string& base : bases) {
    const std::string single = base + std::string(kSuffix);
    if (is_file(folder / single)) return {{single}, {}};
    const std::string index = base + std::string(kIndexSuffix);
    if (is_file(folder / index)) return {{}, index};
  }
  const std::vector<std::string> all = listing(folder);
  std::vector<std::string> candidates;
  for (const std::string& name : all) {
    if (name.ends_with(kSuffix) && name != kMarlinCache && is_file(folder / name)) candidates.push_back(name);
  }
  if (candidates.size() == 1) return {{candidates.front()}, {}};
  if (candidates.size() > 1) {
    fail("{} has several weight files ({}) and no model.safetensors.index.json that says which belong to the model",
         folder.string(), shorten_list(candidates));
  }
  const bool pickled = std::any_of(all.begin(), all.end(), [](const std::string& n) {
    return n.ends_with(".bin") || n.ends_with(".pt") || n.ends_with(".pth");
  });
  fail(
      "{} has no safetensors file (expected model.safetensors, model.safetensors.index.json or "
      "gptq_model-*.safetensors; it has {}){}",
      folder.string(), shorten_list(all),
      pickled ? "; pickled weights (.bin, .pt) are not read: convert them to safetensors first" : "");
}

struct Checkpoint::Impl {
  struct Place {
    std::size_t file = 0;
    TensorView view;
  };
  fs::path folder;
  std::string config_text;
  nlohmann::json config;
  std::vector<SafetensorsFile> files;
  std::vector<fs::path> file_names;
  std::map<std::string, Place, std::less<>> tensors;

  const Place& place(std::string_view name) const {
    const auto it = tensors.find(name);
    if (it != tensors.end()) return it->second;
    fail("{} has no tensor {}{}", folder.string(), name, near_misses(name));
  }

  std::string near_misses(std::string_view wanted) const {
    constexpr std::size_t kShown = 3;
    constexpr std::size_t kLongest = 256;  // the distance costs length squared: no real name is longer
    if (wanted.size() > kLongest) return "";
    std::vector<std::pair<std::size_t, std::string_view>> ranked;
    for (const auto& [name, unused] : tensors) {
      if (name.size() <= kLongest) ranked.emplace_back(edit_distance(wanted, name), name);
    }
    std::sort(ranked.begin(), ranked.end());
    std::string text;
    for (std::size_t i = 0; i < ranked.size() && i < kShown; ++i) {
      // More than a third changed is another name, not a misspelt one.
      if (ranked[i].first * 3 > wanted.size()) break;
      text += (i == 0 ? "; the names most like it are " : ", ") + std::string(ranked[i].second);
    }
    return text;
  }

  void open_single(const fs::path& name) {
    files.emplace_back(folder / name);
    file_names.push_back(name);
    for (const auto& [tensor, view] : files.back().header().tensors) tensors.emplace(tensor, Place{0, view});
  }

  void open_sharded(const fs::path& index) {
    const std::string where = (folder / index).string();
    const nlohmann::json json = read_json_file(folder / index);
    const auto map = JsonView(json, where).object("weight_map");
    if (!map || map->value().empty()) fail("{} has no weight_map that names a tensor", where);
    std::map<std::string, std::size_t> opened;
    for (const auto& [tensor, file] : map->value().items()) {
      if (!file.is_string()) map->refuse(tensor, "the name of a file");
      const auto [it, is_new] = opened.emplace(file.get<std::string>(), files.size());
      if (is_new) {
        const fs::path name = inside(folder, it->first, where);
        files.emplace_back(folder / name);
        file_names.push_back(name);
      }
      const TensorView* view = files[it->second].find(tensor);
      if (view == nullptr) fail("{} says that {} holds the tensor {}, but it does not", where, it->first, tensor);
      tensors.emplace(tensor, Place{it->second, *view});
    }
  }
};

Checkpoint::Checkpoint(const fs::path& folder) : impl_(std::make_unique<Impl>()) {
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored))
    fail("{} is not a folder; a Hugging Face model folder is expected", folder.string());
  const fs::path config = folder / "config.json";
  if (!fs::exists(config, ignored))
    fail("{} has no config.json; a Hugging Face model folder is expected", folder.string());
  impl_->folder = folder;
  impl_->config_text = read_text_file(config, kJsonSizeLimit);
  impl_->config = parse_json(impl_->config_text, config.string());
  if (!impl_->config.is_object())
    fail("{} should be an object, found {}", config.string(), json_excerpt(impl_->config));
  const WeightFiles weights = find_weight_files(folder);
  if (weights.index.empty()) {
    impl_->open_single(weights.files.front());
  } else {
    impl_->open_sharded(weights.index);
  }
}

Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

const fs::path& Checkpoint::folder() const { return impl_->folder; }
const nlohmann::json& Checkpoint::config() const { return impl_->config; }
bool Checkpoint::has(std::string_view name) const { return impl_->tensors.contains(name); }
TensorView Checkpoint::tensor(std::string_view name) const { return impl_->place(name).view; }

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> out;
  out.reserve(impl_->tensors.size());
  for (const auto& [name, unused] : impl_->tensors) out.push_back(name);
  return out;
}

const fs::path& Checkpoint::file_of(std::string_view name) const {
  return impl_->files[impl_->place(name).file].path();
}

void Checkpoint::drop(std::string_view name) const {
  const Impl::Place& place = impl_->place(name);
  impl_->files[place.file].drop(place.view);
}

std::size_t Checkpoint::total_bytes() const {
  std::size_t total = 0;
  for (const auto& [name, place] : impl_->tensors)
    total = checked_add(total, place.view.bytes.size(), "the size of the model");
  return total;
}

std::string Checkpoint::hash() const {
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  const std::unique_ptr<XXH3_state_t, Free> state(XXH3_createState());
  if (!state) fail("no memory to hash {}", impl_->folder.string());
  XXH3_128bits_reset(state.get());
  // Each part goes in with its length, so that no two different sequences of parts look alike.
  const auto add = [&state](const void* data, std::size_t size) {
    const std::uint64_t length = size;
    XXH3_128bits_update(state.get(), &length, sizeof length);
    XXH3_128bits_update(state.get(), data, size);
  };
  add(impl_->config_text.data(), impl_->config_text.size());
  for (std::size_t i = 0; i < impl_->files.size(); ++i) {
    const std::string name = impl_->file_names[i].generic_string();
    const std::uint64_t size = impl_->files[i].size();
    const auto header = impl_->files[i].header().bytes;
    add(name.data(), name.size());
    add(&size, sizeof size);
    add(header.data(), header.size());
  }
  const XXH128_hash_t digest = XXH3_128bits_digest(state.get());
  return fmt::format("xxh3-{:016x}{:016x}", digest.high64, digest.low64);
}

}  // namespace nibble
