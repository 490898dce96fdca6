#include "ops/cuda_loader.h"

#include "core/error.h"
#include "ops/cuda_entry.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

namespace nibble {
namespace {

constexpr const char* kFileName = "libnibble_cuda.so";

/// The folder of the program or library that this code is part of.
std::filesystem::path own_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&make_cuda_backend), &info) == 0 || info.dli_fname == nullptr) return {};
  std::error_code error;
  const std::filesystem::path path = std::filesystem::canonical(info.dli_fname, error);
  // For the program itself, dli_fname is how it was called: take what runs.
  return error ? std::filesystem::canonical("/proc/self/exe", error).parent_path() : path.parent_path();
}

struct Library {
  const CudaEntry* entry = nullptr;
  std::string why;  // where entry is null
};

Library load() {
  // The driver first: where there is none, there is no need to load a library of several hundred MB.
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver == nullptr) return {nullptr, "no NVIDIA driver is installed (libcuda.so.1 is not found)"};
  dlclose(driver);
  std::vector<std::filesystem::path> places;
  if (const char* named = std::getenv("NIBBLE_CUDA_LIBRARY"); named != nullptr && *named != '\0') {
    places.emplace_back(named);
  } else {
    const std::filesystem::path folder = own_folder();
    places = {folder / kFileName, folder / NIBBLE_LIBRARY_FOLDER / kFileName};
  }
  std::string tried;
  for (const std::filesystem::path& place : places) {
    std::error_code error;
    if (!std::filesystem::exists(place, error)) {
      tried += (tried.empty() ? "" : ", ") + place.string();
      continue;
    }
    // Never closed: the registry keeps kernels whose code is in it.
    void* handle = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) return {nullptr, fmt::format("{} cannot be loaded: {}", place.string(), dlerror())};
    const auto entry = reinterpret_cast<const CudaEntry* (*)()>(dlsym(handle, "nibble_cuda_entry"));
    if (entry == nullptr) return {nullptr, fmt::format("{} is not nibble's CUDA library", place.string())};
    if (std::string_view(entry()->version) != NIBBLE_VERSION) {
      return {nullptr,
              fmt::format("{} is of version {}, this program of {}", place.string(), entry()->version, NIBBLE_VERSION)};
    }
    return {entry(), {}};
  }
  return {nullptr, fmt::format("this build has no CUDA library (looked for {})", tried)};
}

const Library& library() {
  static const Library loaded = load();
  return loaded;
}

const CudaEntry& needed_entry() {
  std::string why;
  if (cuda_device_count(&why) == 0) fail("the device cuda cannot be used: {}; use --device cpu", why);
  return *library().entry;
}

}  // namespace

int cuda_device_count(std::string* why) {
  const Library& loaded = library();
  std::string reason = loaded.why;
  const int count = loaded.entry == nullptr ? 0 : loaded.entry->count(reason);
  if (why != nullptr) *why = reason;
  return count;
}

std::string cuda_device_bus(int index) { return needed_entry().bus(index); }

std::unique_ptr<Backend> make_cuda_backend(int index) { return needed_entry().open(index); }

}  // namespace nibble
