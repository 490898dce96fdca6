#include "bench/case_facts.h"

#include "bench/memory.h"
#include "core/error.h"
#include "formats/quant_config.h"
#include "kernels/registry.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

namespace nibble {

std::optional<DType> dtype_option(const std::string& name, const char* flag) {
  if (name.empty()) return std::nullopt;
  const std::optional<DType> dtype = dtype_from_name(name);
  if (!dtype)
    fail_usage("{} {}: there is no such type; expected f32, bf16, f16 or, for the KV cache, i8 or f8_e4m3", flag, name);
  return dtype;
}

std::optional<double> weights_cached(const Checkpoint& checkpoint) {
  std::set<std::filesystem::path> files;
  for (const std::string& name : checkpoint.names()) files.insert(checkpoint.file_of(name));
  double cached = 0;
  double total = 0;
  for (const auto& file : files) {
    const std::optional<double> share = cached_share(file);
    if (!share) return std::nullopt;
    const double size = static_cast<double>(std::filesystem::file_size(file));
    cached += *share * size;
    total += size;
  }
  return total > 0 ? std::optional(cached / total) : std::nullopt;
}

std::string kernels_of(const std::vector<SiteInfo>& sites) {
  std::map<std::string, int> count;
  for (const SiteInfo& site : sites) ++count[site.kernel];
  std::vector<std::pair<std::string, int>> order(count.begin(), count.end());
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  std::string out;
  for (const auto& [kernel, sites_of_it] : order)
    out += fmt::format("{}{} x{}", out.empty() ? "" : ", ", kernel, sites_of_it);
  return out;
}

std::string layers_of(const std::vector<SiteInfo>& sites, DeviceKind device) {
  // In the order in which they first run: a kernel with its ways, and the layers that it runs with their numbers.
  std::vector<std::pair<std::string, std::vector<std::pair<std::string, int>>>> groups;
  std::map<std::string, int> total;
  const auto entry = [](auto& list, const std::string& key) -> auto& {
    const auto found = std::find_if(list.begin(), list.end(), [&](const auto& one) { return one.first == key; });
    if (found != list.end()) return found->second;
    list.emplace_back().first = key;
    return list.back().second;
  };
  for (const SiteInfo& site : sites) {
    std::string layer;
    for (const LinearDesc& part : site.site.parts) {
      if (!layer.empty()) layer += '|';
      layer += part.name.substr(part.name.rfind('.') + 1);
    }
    const std::string ways = text_of(kernel_named(site.kernel, device).ways(site.site));
    ++entry(entry(groups, ways.empty() ? site.kernel : fmt::format("{} ({})", site.kernel, ways)), layer);
    ++total[layer];
  }
  std::string out;
  for (const auto& [kernel, layers] : groups) {
    std::string names;
    for (const auto& [layer, count] : layers) {
      if (!names.empty()) names += ", ";
      names += layer;
      if (count != total[layer]) names += fmt::format(" x{}", count);
    }
    out += fmt::format("{}{}: {}", out.empty() ? "" : "; ", names, kernel);
  }
  return out;
}

QuantisationFacts facts_of(const Checkpoint& checkpoint, const std::vector<SiteInfo>& sites) {
  QuantisationFacts facts;
  const std::optional<QuantConfig> config = find_quant_config(checkpoint.folder());
  if (!config) return facts;
  facts.gptq = true;
  facts.bits = config->linear.bits;
  facts.group_size = config->linear.group_size;
  // What the tensors say, not the configuration: desc_act may have left the order as it was.
  for (const SiteInfo& site : sites) {
    for (const LinearDesc& part : site.site.parts)
      facts.act_order = facts.act_order || (part.gptq && part.gptq->act_order);
  }
  return facts;
}

}  // namespace nibble
