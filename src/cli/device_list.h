// The devices that --device means, opened.
#pragma once

#include "ops/backend.h"

#include <memory>
#include <string>
#include <vector>

namespace nibble {

/// "auto": the CPU and, where one can be used, the first GPU; another name: that device. Where "auto" finds no GPU,
/// `no_gpu` says why, as a sentence. Throws as make_backend() does.
std::vector<std::unique_ptr<Backend>> devices_named(const std::string& name, std::string& no_gpu);

}  // namespace nibble
