// The weights of a lowered program in device memory: packed sites, norms, the embedding.
#pragma once

#include "core/device.h"
#include "core/matrix.h"
#include "engine/load_times.h"
#include "engine/lowering.h"
#include "formats/checkpoint.h"
#include "formats/quant_config.h"
#include "models/family.h"
#include "ops/backend.h"

#include <cstddef>
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

/// Bytes for residual sites that leave their results of few rows once more, in the order of the act-order sites behind
/// them (kernels/output_order.h); none where there are no such sites.
struct OrderedCopyBytes {
  std::size_t copy = 0;    // the results, in one place for all
  std::size_t tables = 0;  // at most: where each stands, and the norms' weights in that order
};
OrderedCopyBytes ordered_copy_bytes(const std::vector<LoweredNode>& nodes, const DeviceInfo& device);

class Weights {
 public:
  /// Reads and packs every site, in the order of the nodes, with progress; pages of the file are dropped once packed.
  /// Sites' group sizes and the like are set to what the tensors really are.
  void load(const Checkpoint& checkpoint, std::vector<LoweredNode>& nodes, Device& device, Stream& stream,
            LoadTimes& times);

  /// Reads and packs the convolutions of audio, their weight norm multiplied out, as the lowered nodes have them.
  void load_convolutions(const Checkpoint& checkpoint, const std::vector<LoweredNode>& nodes, Backend& backend,
                         Stream& stream, LoadTimes& times);

  /// The packed site of node `index`. Nodes of the same modules share one.
  const PackedLinear& packed(std::size_t index) const { return *packed_[index]; }
  const float* norm(const std::string& name) const;
  /// A table of embeddings.
  const MatrixRef& table(const std::string& name) const;
  /// The convolution of a module.
  const PackedConvolution& convolution(const std::string& module) const;
  /// SelfAttentionArgs::bias of a SelfAttentionNode with this table of biases.
  const float* distance_bias(const std::string& name) const;

 private:
  void load_norm(const Checkpoint& checkpoint, const std::string& name, Device& device, Stream& stream);
  void load_table(const Checkpoint& checkpoint, const std::string& name, Device& device, Stream& stream);
  void load_distance_bias(const Checkpoint& checkpoint, const SelfAttentionNode& node, Device& device, Stream& stream);
  void load_plain(const Checkpoint& checkpoint, const LoweredNode& node, Device& device, Stream& stream);
  /// Lets sites put out in the order that the linears behind them want.
  void put_out_in_order(const std::vector<LoweredNode>& nodes, const std::vector<std::shared_ptr<PackedLinear>>& packed,
                        Device& device, Stream& stream);

  struct Table {
    MatrixRef ref;
    std::unique_ptr<Buffer> copy;  // empty where it is read in the file's pages
  };
  std::vector<std::shared_ptr<const PackedLinear>> packed_;
  std::unique_ptr<Buffer> ordered_copy_;
  std::map<std::string, std::unique_ptr<Buffer>> norms_;
  std::map<std::string, Table> tables_;
  std::map<std::string, std::unique_ptr<Buffer>> biases_;
  std::map<std::string, std::unique_ptr<PackedConvolution>> convolutions_;
};

}  // namespace nibble
