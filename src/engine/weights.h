// The weights of a lowered program in device memory: packed sites, norms, the embedding.
#pragma once

#include "core/device.h"
#include "core/matrix.h"
#include "engine/load_times.h"
#include "engine/lowering.h"
#include "formats/checkpoint.h"
#include "formats/quant_config.h"
#include "models/family.h"

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace nibble {

/// The tensors of one linear node, a part each, and their group sizes and the like set in `site` to what they really
/// are. The result points into `loaded` and into the checkpoint's maps.
std::vector<LinearTensors> load_site(const Checkpoint& checkpoint, const std::optional<QuantConfig>& quant,
                                     const LinearNode& node, LinearSite& site, std::vector<LoadedLinear>& loaded);

class Weights {
 public:
  /// Reads and packs every site, in the order of the nodes, with progress; pages of the file are dropped once packed.
  /// Sites' group sizes and the like are set to what the tensors really are.
  void load(const Checkpoint& checkpoint, std::vector<LoweredNode>& nodes, Device& device, Stream& stream,
            LoadTimes& times);

  /// The packed site of node `index`.
  const PackedLinear& packed(std::size_t index) const { return *packed_[index]; }
  const float* norm(const std::string& name) const;
  const MatrixRef& embedding() const { return embedding_; }

 private:
  void load_norm(const Checkpoint& checkpoint, const std::string& name, Device& device, Stream& stream);
  void load_embedding(const Checkpoint& checkpoint, const std::string& name, Device& device, Stream& stream);

  std::vector<std::unique_ptr<PackedLinear>> packed_;
  std::map<std::string, std::unique_ptr<Buffer>> norms_;
  std::unique_ptr<Buffer> embedding_copy_;
  MatrixRef embedding_;
};

}  // namespace nibble
