// Measured means verified: a kernel is timed on a model only after it has agreed with the reference on the model's
// weights.
#pragma once

#include "engine/engine.h"
#include "engine/lowering.h"
#include "formats/checkpoint.h"

#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

struct ModelVerification {
  std::int64_t sites = 0;   // distinct shapes
  double error = 0;         // the largest, as a share of the bound that its kernel states
  double tune_seconds = 0;  // choosing kernels by measuring, for --kernel auto
};

/// Verifies (kernels/verify.h) one site of each distinct kernel, shape, format and fusion among lowered nodes, for each
/// count of rows. Throws Error that names the site, the kernel and the figures where one disagrees.
ModelVerification verify_nodes(const Checkpoint& checkpoint, std::vector<LoweredNode> nodes, Backend& backend,
                               std::span<const std::int64_t> rows);

/// Verifies one site of each distinct kernel, shape, format and fusion that an engine with these
/// options would run, for each count of rows. Throws Error that names the site, the kernel and the figures where one
/// disagrees. `backend` is that of EngineOptions::device.
ModelVerification verify_model(const Checkpoint& checkpoint, const EngineOptions& options, Backend& backend,
                               std::span<const std::int64_t> rows);

}  // namespace nibble
