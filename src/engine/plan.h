// The memory plan: every byte that a run will hold, known before the first token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace nibble {

struct PlanItem {
  std::string name;   // "model.layers.0.self_attn.q_proj|k_proj|v_proj (packed)"
  std::size_t bytes = 0;
};

struct MemoryPlan {
  std::size_t weights = 0;      // packed linear sites, norms, embedding kept in memory
  std::size_t mapped = 0;       // of the weights: read from the file's pages in place, and so reclaimable
  std::size_t kv_cache = 0;
  std::size_t arena = 0;        // activations, with lifetimes overlaid
  std::size_t workspace = 0;    // scratch of kernels and ops
  std::size_t device_memory = 0;  // what the device has
  std::vector<PlanItem> items;  // the larger parts, by name

  std::size_t total() const { return weights + kv_cache + arena + workspace; }
};

}  // namespace nibble
