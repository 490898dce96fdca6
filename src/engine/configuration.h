// What an engine would do with a checkpoint, decided before a weight is read: `nibble plan` and the benchmark ask too.
#pragma once

#include "engine/engine.h"
#include "engine/lowering.h"
#include "engine/plan.h"
#include "formats/checkpoint.h"
#include "ops/backend.h"

#include <memory>
#include <string>
#include <string_view>
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

/// What EngineOptions::device means on this machine.
struct DeviceChoice {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;  // of the GPU, among those that CUDA_VISIBLE_DEVICES leaves

  /// "cpu", "cuda:0": chosen from that, it is the same device.
  std::string name() const;
};

/// "auto" is the first GPU where one can be used, and the CPU elsewhere; "cpu", "cuda" and "cuda:N" are what they say,
/// whether there is such a GPU or not. UsageError for other names.
DeviceChoice choose_device(std::string_view name);

/// The back end of EngineOptions::device; UsageError for a name that is none, Error for a GPU that cannot be used.
std::unique_ptr<Backend> make_backend(const EngineOptions& options);

/// Throws Error (UsageError for an option) where the engine would: an unknown kernel or type, a site that the kernel
/// cannot run, a checkpoint that lacks a tensor. Whether the plan fits the device is not checked.
EngineConfiguration configure_engine(const Checkpoint& checkpoint, const EngineOptions& options, Backend& backend);

}  // namespace nibble
