#include "cli/device_list.h"

#include "engine/configuration.h"
#include "ops/cuda_loader.h"

#include <fmt/core.h>

namespace nibble {

std::vector<std::unique_ptr<Backend>> devices_named(const std::string& name, std::string& no_gpu) {
  std::vector<std::unique_ptr<Backend>> out;
  EngineOptions options;
  options.device = name;
  if (name != "auto") {
    out.push_back(make_backend(options));
    return out;
  }
  out.push_back(make_cpu_backend());
  std::string why;
  if (cuda_device_count(&why) > 0) {
    out.push_back(make_cuda_backend(0));
  } else {
    no_gpu = fmt::format("No GPU can be used here: {}.", why);
  }
  return out;
}

}  // namespace nibble
