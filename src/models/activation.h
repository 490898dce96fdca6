#pragma once

#include "formats/json.h"
#include "kernels/linear_kernel.h"

#include <string_view>

namespace nibble {

/// The activation that config.json names under `key`, `fallback` where it does not have the key. Throws Error naming
/// the known ones.
ActivationKind read_activation(const JsonView& config, std::string_view key, std::string_view fallback);

}  // namespace nibble
