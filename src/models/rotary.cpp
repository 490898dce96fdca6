#include "models/rotary.h"

#include "core/error.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <string>

namespace nibble {
namespace {

std::vector<double> plain_frequencies(double theta, std::int64_t dims) {
  std::vector<double> out(static_cast<std::size_t>(dims / 2));
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(dims));
  }
  return out;
}

// Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between blended.
void scale_llama3(std::vector<double>& inv, const JsonView& scaling) {
  const double factor = scaling.number("factor");
  const double low = scaling.number("low_freq_factor");
  const double high = scaling.number("high_freq_factor");
  const double trained = static_cast<double>(scaling.positive("original_max_position_embeddings"));
  if (!(high > low)) fail("{}: high_freq_factor ({}) should be above low_freq_factor ({})", scaling.where(), high, low);
  for (double& f : inv) {
    const double wavelength = 2 * std::numbers::pi / f;
    if (wavelength < trained / high) continue;
    if (wavelength > trained / low) {
      f /= factor;
    } else {
      const double s = (trained / wavelength - low) / (high - low);
      f *= (1 - s) / factor + s;
    }
  }
}

// YaRN (Peng et al. 2023): frequencies below a cut are interpolated, above another kept, with a linear ramp between.
void scale_yarn(RotarySpec& spec, std::vector<double>& inv, const JsonView& scaling, std::int64_t max_positions) {
  const double factor = scaling.number("factor");
  const double trained = static_cast<double>(scaling.positive("original_max_position_embeddings", max_positions));
  const double fast = scaling.number("beta_fast", 32);
  const double slow = scaling.number("beta_slow", 1);
  const double d = static_cast<double>(spec.dims);
  const auto correction = [&](double rotations) {
    return d * std::log(trained / (rotations * 2 * std::numbers::pi)) / (2 * std::log(spec.theta));
  };
  double low = correction(fast);
  double high = correction(slow);
  if (scaling.boolean("truncate", true)) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, d - 1);
  if (low == high) high += 0.001;  // transformers' guard against a division by zero
  for (std::size_t i = 0; i < inv.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    const double keep = 1 - ramp;
    inv[i] = inv[i] / factor * (1 - keep) + inv[i] * keep;
  }
  const auto mscale = [](double scale, double m) { return scale <= 1 ? 1.0 : 0.1 * m * std::log(scale) + 1.0; };
  double attention = mscale(factor, 1);
  if (scaling.has("attention_factor")) {
    attention = scaling.number("attention_factor");
  } else if (scaling.has("mscale") && scaling.has("mscale_all_dim")) {
    attention = mscale(factor, scaling.number("mscale")) / mscale(factor, scaling.number("mscale_all_dim"));
  }
  spec.attention_factor = static_cast<float>(attention);
}

}  // namespace

RotarySpec read_rotary(const JsonView& config, std::int64_t head_dim, std::int64_t max_positions,
                       double default_theta) {
  std::optional<JsonView> scaling = config.object("rope_parameters");
  const bool modern = scaling.has_value();
  if (!scaling) scaling = config.object("rope_scaling");

  RotarySpec spec;
  spec.theta = config.number("rope_theta", default_theta);
  if (modern) spec.theta = scaling->number("rope_theta", spec.theta);
  if (!(spec.theta > 1)) fail("config.json: rope_theta should be above 1, found {}", spec.theta);
  double partial = config.number("partial_rotary_factor", 1);
  if (modern) partial = scaling->number("partial_rotary_factor", partial);
  if (!(partial > 0 && partial <= 1)) fail("config.json: partial_rotary_factor should be in (0, 1], found {}", partial);
  spec.dims = static_cast<std::int64_t>(static_cast<double>(head_dim) * partial);

  std::vector<double> inv = plain_frequencies(spec.theta, spec.dims);
  std::string type = "default";
  if (scaling) type = scaling->text("rope_type", scaling->text("type", "default"));
  if (scaling && type != "default" && type != "llama3" && !(scaling->number("factor") >= 1)) {
    scaling->refuse("factor", "a number of at least 1");
  }
  if (type == "linear") {
    for (double& f : inv) f /= scaling->number("factor");
  } else if (type == "dynamic") {
    spec.dynamic_after = max_positions;
    spec.dynamic_factor = scaling->number("factor");
    if (spec.dims <= 2)
      fail("config.json: dynamic rope scaling needs more than 2 rotary dimensions, found {}", spec.dims);
  } else if (type == "llama3") {
    scale_llama3(inv, *scaling);
  } else if (type == "yarn") {
    scale_yarn(spec, inv, *scaling, max_positions);
  } else if (type != "default") {
    fail(
        "config.json: rope scaling of type \"{}\" is not supported; nibble knows default, linear, dynamic, yarn and "
        "llama3",
        type);
  }
  spec.inv_freq.assign(inv.size(), 0.0F);
  std::transform(inv.begin(), inv.end(), spec.inv_freq.begin(), [](double f) { return static_cast<float>(f); });
  return spec;
}

}  // namespace nibble
