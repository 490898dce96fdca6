#include "models/activation.h"

#include "core/error.h"

#include <string>

namespace nibble {

ActivationKind read_activation(const JsonView& config, std::string_view key, std::string_view fallback) {
  const std::string name = config.text(key, fallback);
  if (name == "silu" || name == "swish") return ActivationKind::silu;
  if (name == "gelu") return ActivationKind::gelu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new" || name == "gelu_fast") return ActivationKind::gelu_tanh;
  if (name == "relu") return ActivationKind::relu;
  if (name == "quick_gelu") return ActivationKind::quick_gelu;
  if (name == "tanh") return ActivationKind::tanh;
  fail(
      "{}: {} \"{}\" is not supported; nibble knows silu, gelu, gelu_pytorch_tanh, gelu_new, quick_gelu, relu and tanh",
      config.where(), key, name);
}

}  // namespace nibble
