// The memory plan: every byte that a run will hold, known before the first token.
#pragma once

#include "engine/lowering.h"
#include "ops/backend.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace nibble {

struct PlanItem {
  std::string name;  // "linear self_attn.q_proj|k_proj|v_proj, layer 3 (packed)"
  std::size_t bytes = 0;
};

struct MemoryPlan {
  std::size_t weights = 0;    // packed linear sites and norms
  std::size_t embedding = 0;  // the embedding table, read from the file's pages in place where the device can
  std::size_t kv_cache = 0;
  std::size_t arena = 0;          // activations, with lifetimes overlaid, and the maps of rows
  std::size_t workspace = 0;      // scratch of kernels and ops
  std::size_t device_memory = 0;  // what the device has
  std::vector<PlanItem> items;    // every part by name, in the order of use

  std::size_t total() const { return weights + embedding + kv_cache + arena + workspace; }
};

/// Where a buffer of the program lies in the arena, and as what.
struct ArenaSlot {
  std::size_t offset = 0;
  std::size_t bytes = 0;  // 0 for a buffer that lies inside of another's slot
  DType dtype = DType::f32;
  std::int64_t stride = 0;  // elements from row to row; more than its columns where buffers lie side by side
};

/// What the sizes of a run depend on beside the program.
struct RunSizes {
  std::int64_t max_batch = 1;
  std::int64_t max_tokens = 1;      // a sequence
  std::int64_t max_rows = 1;        // a pass
  std::int64_t max_logit_rows = 1;  // a pass
  std::int64_t max_images = 0;      // a pass, or recordings; 0 for models of tokens
  std::int64_t max_steps = 0;       // a recording, as EncoderEngine::reserve() counts them
  DType kv_dtype = DType::f32;
  DType activations = DType::f32;  // of buffers that are not wide
  bool joins_parts = false;        // BackendTraits::joins_parts
  DType compute = DType::f32;      // of attention without a cache
  bool materialise = false;        // SelfAttentionArgs::materialise
  bool aligned_frames = false;     // BackendTraits::aligned_frames
};

/// The most rows that a buffer has in a pass.
std::int64_t most_rows(const Program& program, const RunSizes& sizes, const BufferDesc& buffer);

/// One layer's cache as the back end is asked for it.
KvView kv_shape(const Program& program, const RunSizes& sizes);

/// Overlays buffers whose lifetimes do not meet: slots[id] for each buffer, the arena's size in `bytes`. Buffers that
/// no node uses get no room. With joins_parts, the outputs of one site's parts become columns of one matrix, where each
/// part's rows are a multiple of 16 bytes.
std::vector<ArenaSlot> plan_arena(const Program& program, const std::vector<LoweredNode>& nodes, const RunSizes& sizes,
                                  std::size_t& bytes);

/// Bytes of LinearArgs::parts of the most demanding node.
std::size_t parts_bytes(const std::vector<LoweredNode>& nodes, std::int64_t max_rows, const DeviceInfo& device);

/// Scratch: parts_bytes(), then that of the most demanding node.
std::size_t plan_workspace(const Program& program, const std::vector<LoweredNode>& nodes, const RunSizes& sizes,
                           Backend& backend);

/// The whole plan; embedding_bytes as stored. Encoders (Program::encoder) have no cache and choose no tokens.
MemoryPlan make_plan(const Program& program, const std::vector<LoweredNode>& nodes, const RunSizes& sizes,
                     Backend& backend, std::size_t embedding_bytes);

}  // namespace nibble
