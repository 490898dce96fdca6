// Where a model is: a folder, or a model of the Hugging Face hub that was downloaded into its cache.
#pragma once

#include <filesystem>
#include <string>

namespace nibble {

/// The cache's folder, as huggingface_hub finds it: HF_HUB_CACHE, else HF_HOME/hub, else
/// XDG_CACHE_HOME/huggingface/hub, else
/// ~/.cache/huggingface/hub. Throws Error where none of these variables nor HOME is set.
std::filesystem::path hub_cache_folder();

/// The folder of `model`: itself where it is one; else the snapshot of the hub model of that id ("name" or
/// "owner/name") at `revision` (a branch, a tag, or a full commit hash). Nothing is downloaded: where the cache does
/// not have it, throws Error with the command that would fetch it.
std::filesystem::path resolve_model(const std::string& model, const std::string& revision = "main");

}  // namespace nibble
