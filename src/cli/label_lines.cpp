#include "cli/label_lines.h"

#include "cli/encoder_options.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace nibble {

std::string label_lines(nlohmann::ordered_json json, const std::string& name, std::span<const float> logits,
                        const Labels& labels, std::size_t top_k, bool as_json) {
  json["labels"] = nlohmann::ordered_json::array();
  std::string lines = name + "\n";
  for (const Candidate& best : best_of(scores_of(logits, labels.kind), top_k)) {
    const std::string& label = labels.names[static_cast<std::size_t>(best.id)];
    json["labels"].push_back({{"label", label}, {"score", shortest(best.score)}});
    lines += fmt::format("  {:.4f}  {}\n", best.score, label);
  }
  return as_json ? json_line(json) : lines;
}

}  // namespace nibble
