// What an engine would do with a checkpoint, decided before a weight is read: `nibble plan` and the benchmark ask too.
#pragma once

#include "engine/engine.h"
#include "engine/lowering.h"
#include "engine/plan.h"
#include "formats/checkpoint.h"
#include "ops/backend.h"

#include <memory>
#include <vector>

namespace nibble {

struct EngineConfiguration {
  Program program;
  DType compute = DType::f32;
  DType kv_dtype = DType::f32;
  RunSizes sizes;
  std::vector<LoweredNode> nodes;
  MemoryPlan plan;
  double tune_seconds = 0;  // choosing kernels, with --kernel auto by measuring
};

/// The back end of EngineOptions::device; UsageError where this build has no such device.
std::unique_ptr<Backend> make_backend(const EngineOptions& options);

/// Throws Error (UsageError for an option) where the engine would: an unknown kernel or type, a site that the kernel
/// cannot run, a checkpoint that lacks a tensor. Whether the plan fits the device is not checked.
EngineConfiguration configure_engine(const Checkpoint& checkpoint, const EngineOptions& options, Backend& backend);

}  // namespace nibble
