#include "quant/output_folder.h"

#include "core/checked.h"
#include "core/error.h"
#include "core/file.h"
#include "formats/gptq_pack.h"

#include <fmt/core.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <system_error>
#include <utility>

namespace nibble {

namespace fs = std::filesystem;

OutputFolder::OutputFolder(fs::path path, bool overwrite) : path_(std::move(path)) {
  if (!path_.has_filename()) path_ = path_.parent_path();  // "out/" is "out"
  std::error_code error;
  if (fs::exists(path_, error)) {
    if (!fs::is_directory(path_, error)) fail_usage("{} exists and is not a folder", path_.string());
    if (!overwrite && !fs::is_empty(path_, error)) {
      fail_usage("{} exists already; name another folder, or replace it with --overwrite", path_.string());
    }
  }
  const fs::path parent = fs::absolute(path_).parent_path();
  fs::create_directories(parent, error);
  partial_ = parent / fmt::format(".{}.partial-{}", path_.filename().string(), ::getpid());
  fs::remove_all(partial_, error);
  if (!fs::create_directory(partial_, error)) fail("cannot make the folder {}: {}", partial_.string(), error.message());
}

OutputFolder::~OutputFolder() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(partial_, ignored);
}

void OutputFolder::commit() {
  std::error_code error;
  const fs::path old = partial_.string() + "-old";
  const bool replaces = fs::exists(path_, error);
  if (replaces) {
    fs::rename(path_, old, error);
    if (error) fail("cannot replace {}: {}", path_.string(), error.message());
  }
  fs::rename(partial_, path_, error);
  if (error) {
    std::error_code ignored;
    if (replaces) fs::rename(old, path_, ignored);
    fail("cannot put the finished folder at {}: {}", path_.string(), error.message());
  }
  committed_ = true;
  if (replaces) fs::remove_all(old, error);
}

ShardedWriter::ShardedWriter(fs::path folder, const std::vector<TensorDeclaration>& tensors, std::size_t shard_bytes)
    : folder_(std::move(folder)) {
  std::vector<std::vector<TensorDeclaration>> shards(1);
  std::size_t filled = 0;
  for (const TensorDeclaration& tensor : tensors) {
    const std::size_t bytes = bytes_of(tensor);
    if (!shards.back().empty() && filled + bytes > shard_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    filled += bytes;
    total_size_ = checked_add(total_size_, bytes, "the model");
    file_of_.emplace(tensor.name, shards.size() - 1);
    shards.back().push_back(tensor);
  }
  writers_.resize(shards.size());  // file_name() needs their number
  for (std::size_t i = 0; i < shards.size(); ++i) {
    writers_[i] = std::make_unique<SafetensorsWriter>(folder_ / file_name(i), std::move(shards[i]));
  }
}

std::string ShardedWriter::file_name(std::size_t index) const {
  if (writers_.size() == 1) return "model.safetensors";
  return fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, writers_.size());
}

void ShardedWriter::append(std::string_view name, std::span<const std::byte> bytes) {
  const auto found = file_of_.find(name);
  if (found == file_of_.end()) fail("tensor {} was not declared before it was written to {}", name, folder_.string());
  writers_[found->second]->append(name, bytes);
}

void ShardedWriter::commit() {
  for (const auto& writer : writers_) writer->commit();
  if (writers_.size() == 1) return;
  nlohmann::ordered_json index;
  index["metadata"]["total_size"] = total_size_;
  for (const auto& [name, file] : file_of_) index["weight_map"][name] = file_name(file);
  write_text_file(folder_ / "model.safetensors.index.json", index.dump(2) + "\n");
}

std::size_t bytes_of(const TensorDeclaration& tensor) {
  return checked_mul(static_cast<std::size_t>(element_count(tensor.shape)), bytes_of(tensor.dtype), tensor.name);
}

void declare_gptq(std::vector<TensorDeclaration>& to, const std::string& module, int bits, std::int64_t in_features,
                  std::int64_t out_features, std::int64_t groups) {
  to.push_back({module + ".qweight", DType::i32, {packed_words(in_features, bits), out_features}});
  to.push_back({module + ".qzeros", DType::i32, {groups, packed_words(out_features, bits)}});
  to.push_back({module + ".scales", DType::f16, {groups, out_features}});
  to.push_back({module + ".g_idx", DType::i32, {in_features}});
}

}  // namespace nibble
