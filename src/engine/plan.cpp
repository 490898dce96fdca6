#include "engine/plan.h"

#include "core/checked.h"
#include "engine/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <set>

namespace nibble {
namespace {

// Matches the strictest alignment that kernels ask of activations and scratch, on the CPU and on GPUs.
constexpr std::size_t kAlign = 256;

std::size_t rows_bytes(std::int64_t rows, std::int64_t columns, std::size_t element) {
  return round_up(
      checked_mul(checked_mul(static_cast<std::size_t>(rows), static_cast<std::size_t>(columns), "a buffer"), element,
                  "a buffer"),
      kAlign);
}

struct Lifetime {
  std::size_t first = std::numeric_limits<std::size_t>::max();
  std::size_t last = 0;
  bool used() const { return first != std::numeric_limits<std::size_t>::max(); }
  bool meets(const Lifetime& other) const { return first <= other.last && other.first <= last; }
};

// The buffers that lie inside of another's slot, and where: columns of one matrix, of which `first` holds the slot.
struct Joined {
  BufferId first = -1;
  std::int64_t column = 0;
  std::int64_t columns = 0;  // of the whole matrix
};

std::vector<Joined> join_parts(const Program& program, const std::vector<LoweredNode>& nodes, const RunSizes& sizes) {
  std::vector<Joined> out(program.buffers.size());
  // Vector loads of 16 bytes are to stay aligned in each part.
  constexpr std::size_t kAlignedBytes = 16;
  if (!sizes.joins_parts) return out;
  for (const LoweredNode& node : nodes) {
    const LinearNode* linear = node.linear();
    if (linear == nullptr || node.gated || linear->y.size() < 2) continue;
    const std::size_t element = bytes_of(sizes.activations);
    std::int64_t columns = 0;
    bool fits = true;
    for (const BufferId id : linear->y) {
      const BufferDesc& desc = program.buffers[static_cast<std::size_t>(id)];
      columns += desc.columns;
      fits = fits && !desc.wide && static_cast<std::size_t>(desc.columns) * element % kAlignedBytes == 0;
    }
    if (!fits) continue;
    std::int64_t column = 0;
    for (const BufferId id : linear->y) {
      out[static_cast<std::size_t>(id)] = {linear->y.front(), column, columns};
      column += program.buffers[static_cast<std::size_t>(id)].columns;
    }
  }
  return out;
}

}  // namespace

std::int64_t most_rows(const Program& program, const RunSizes& sizes, const BufferDesc& buffer) {
  switch (buffer.rows) {
    case RowSet::tokens:
      return sizes.max_rows;
    case RowSet::logits:
      return sizes.max_logit_rows;
    case RowSet::frames:
      return sizes.max_images * program.audio->room(sizes.max_steps, buffer.stages, sizes.aligned_frames);
    case RowSet::patches:
      break;
  }
  return program.image ? sizes.max_images * program.image->patches() : 0;
}

KvView kv_shape(const Program& program, const RunSizes& sizes) {
  KvView shape;
  shape.dtype = sizes.kv_dtype;
  shape.slots = sizes.max_batch;
  shape.kv_heads = program.kv_heads;
  shape.capacity = sizes.max_tokens;
  shape.head_dim = program.head_dim;
  return shape;
}

std::vector<ArenaSlot> plan_arena(const Program& program, const std::vector<LoweredNode>& nodes, const RunSizes& sizes,
                                  std::size_t& bytes) {
  const std::vector<Joined> joined = join_parts(program, nodes, sizes);
  std::vector<Lifetime> lives(program.buffers.size());
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    const auto touch = [&](BufferId id) {
      if (const BufferId first = joined[static_cast<std::size_t>(id)].first; first >= 0) id = first;
      Lifetime& life = lives[static_cast<std::size_t>(id)];
      life.first = std::min(life.first, i);
      life.last = std::max(life.last, i);
    };
    for (const BufferId id : nodes[i].reads()) touch(id);
    for (const BufferId id : nodes[i].writes()) touch(id);
  }
  // The logits stay for the caller after the last node.
  if (program.logits >= 0) lives[static_cast<std::size_t>(program.logits)].last = nodes.size();
  if (program.encoder) lives[static_cast<std::size_t>(program.hidden_state)].last = nodes.size();

  std::vector<ArenaSlot> slots(program.buffers.size());
  std::vector<std::size_t> order;
  for (std::size_t id = 0; id < slots.size(); ++id) {
    const BufferDesc& desc = program.buffers[id];
    slots[id].dtype = buffer_dtype(desc, sizes.activations);
    slots[id].stride = joined[id].first >= 0 ? joined[id].columns : desc.columns;
    if (!lives[id].used()) continue;
    slots[id].bytes = rows_bytes(most_rows(program, sizes, desc), slots[id].stride, bytes_of(slots[id].dtype));
    order.push_back(id);
  }
  // Largest first, each at the lowest offset that no buffer alive at the same time covers.
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return slots[a].bytes > slots[b].bytes; });
  bytes = 0;
  std::vector<std::size_t> placed;
  for (const std::size_t id : order) {
    std::vector<std::size_t> rivals;
    for (const std::size_t other : placed) {
      if (lives[id].meets(lives[other])) rivals.push_back(other);
    }
    std::sort(rivals.begin(), rivals.end(),
              [&](std::size_t a, std::size_t b) { return slots[a].offset < slots[b].offset; });
    std::size_t offset = 0;
    for (const std::size_t other : rivals) {
      if (slots[other].offset >= offset + slots[id].bytes) break;
      offset = std::max(offset, slots[other].offset + slots[other].bytes);
    }
    slots[id].offset = offset;
    bytes = std::max(bytes, offset + slots[id].bytes);
    placed.push_back(id);
  }
  for (std::size_t id = 0; id < slots.size(); ++id) {
    if (joined[id].first < 0) continue;
    slots[id].offset = slots[static_cast<std::size_t>(joined[id].first)].offset +
                       static_cast<std::size_t>(joined[id].column) * bytes_of(slots[id].dtype);
  }
  return slots;
}

std::size_t parts_bytes(const std::vector<LoweredNode>& nodes, std::int64_t max_rows, const DeviceInfo& device) {
  std::size_t most = 0;
  for (const LoweredNode& node : nodes) {
    if (!node.in_parts || node.linear() == nullptr) continue;
    // More rows have fewer parts.
    for (std::int64_t rows = 1; rows <= max_rows; ++rows) {
      const int parts = node.kernel->parts(node.site, rows, device);
      if (parts == 1) break;
      most = std::max(most, rows_bytes(rows * parts, node.site.out_features(), sizeof(float)));
    }
  }
  return most;
}

std::size_t plan_workspace(const Program& program, const std::vector<LoweredNode>& nodes, const RunSizes& sizes,
                           Backend& backend) {
  std::size_t most = 0;
  for (const LoweredNode& node : nodes) {
    if (const LinearNode* linear = node.linear()) {
      const std::int64_t rows = most_rows(program, sizes, program.buffers[static_cast<std::size_t>(linear->x)]);
      // Kernels change their ways with the number of rows, so the most rows need not need the most scratch.
      for (std::int64_t m = 1; m < rows; m *= 2) most = std::max(most, node.kernel->workspace(node.site, m));
      most = std::max(most, node.kernel->workspace(node.site, rows));
    } else if (const auto* attention = std::get_if<AttentionNode>(&node.node.op)) {
      most = std::max(most, backend.attention_workspace(sizes.max_rows, attention->heads, kv_shape(program, sizes)));
      most = std::max(most, backend.attention_workspace(sizes.max_batch, attention->heads, kv_shape(program, sizes)));
    } else if (const auto* self = std::get_if<SelfAttentionNode>(&node.node.op)) {
      most = std::max(most, backend.self_attention_workspace({.rows = sizes.max_rows,
                                                              .sequences = sizes.max_batch,
                                                              .longest = sizes.max_tokens,
                                                              .heads = self->heads,
                                                              .head_dim = program.head_dim,
                                                              .compute = sizes.compute,
                                                              .materialise = sizes.materialise}));
    } else if (const auto* convolve = std::get_if<ConvolveNode>(&node.node.op)) {
      most = std::max(most, backend.convolution_workspace(convolve->shape));
    } else if (std::holds_alternative<SampleNode>(node.node.op)) {
      most = std::max(most, backend.sample_workspace(sizes.max_logit_rows, program.vocab));
    }
  }
  return round_up(most, kAlign) + parts_bytes(nodes, sizes.max_rows, backend.device().info());
}

namespace {

// Samples; spectrograms as rows, and on a GPU as they come.
std::size_t audio_bytes(const Program& program, const RunSizes& sizes, DeviceKind device) {
  const AudioShape& audio = *program.audio;
  const std::int64_t rows = sizes.max_images * audio.room(sizes.max_steps, 0, sizes.aligned_frames);
  const std::size_t raw = rows_bytes(rows, audio.channels, sizeof(float));
  if (audio.channels == 1) return raw;
  return rows_bytes(rows, audio.channels, bytes_of(sizes.activations)) + (device == DeviceKind::cuda ? raw : 0);
}

}  // namespace

MemoryPlan make_plan(const Program& program, const std::vector<LoweredNode>& nodes, const RunSizes& sizes,
                     Backend& backend, std::size_t embedding_bytes) {
  MemoryPlan plan;
  plan.device_memory = backend.device().info().memory_bytes;
  const auto item = [&plan](std::string name, std::size_t bytes) { plan.items.push_back({std::move(name), bytes}); };
  plan.embedding = embedding_bytes;
  item("embedding", embedding_bytes);
  std::size_t norms = 0;
  std::set<std::string> modules;  // nodes of the same modules share their weights
  for (const LoweredNode& node : nodes) {
    const NormNode* norm = std::get_if<NormNode>(&node.node.op);
    if (node.norm) norm = &*node.norm;
    if (norm != nullptr && modules.insert(norm->weight).second) {
      const std::int64_t columns = program.buffers[static_cast<std::size_t>(norm->x)].columns / norm->groups;
      norms += rows_bytes(1, columns, sizeof(float)) * (norm->bias.empty() ? 1 : 2);
    }
    if (const auto* over_time = std::get_if<InstanceNormNode>(&node.node.op)) {
      norms += 2 * rows_bytes(1, program.buffers[static_cast<std::size_t>(over_time->x)].columns, sizeof(float));
    } else if (const auto* convolve = std::get_if<ConvolveNode>(&node.node.op)) {
      plan.weights += backend.convolution_bytes(convolve->shape);
      item(node.name(), backend.convolution_bytes(convolve->shape));
    }
    if (node.linear() == nullptr || !modules.insert(modules_of(*node.linear())).second) continue;
    const std::size_t bytes = node.kernel->packed_bytes(node.site);
    plan.weights += bytes;
    item(node.node.layer >= 0 && node.node.layer < program.layers
             ? fmt::format("layer {}: {} ({})", node.node.layer, node.name(), node.kernel->name())
             : fmt::format("{} ({})", node.name(), node.kernel->name()),
         bytes);
  }
  plan.weights += norms;
  item("norms", norms);
  const OrderedCopyBytes ordered = ordered_copy_bytes(nodes, backend.device().info());
  plan.weights += ordered.copy + ordered.tables;
  if (ordered.copy > 0) item("inputs in the order of act-order", ordered.copy + ordered.tables);
  plan_arena(program, nodes, sizes, plan.arena);
  if (program.encoder) {
    // Tokens, positions, types and rows asked for; where sequences and tiles of them begin, and how much of each
    // counts.
    plan.arena += rows_bytes(sizes.max_rows, 4, 4) + rows_bytes(sizes.max_batch + 1, 5, 4);
    if (program.image) plan.arena += rows_bytes(sizes.max_images, program.image->values(), sizeof(float));
    if (program.audio) plan.arena += audio_bytes(program, sizes, backend.device().info().kind);
    item("activations and maps", plan.arena);
    plan.workspace = plan_workspace(program, nodes, sizes, backend);
    item("scratch of kernels and ops", plan.workspace);
    return plan;
  }
  plan.kv_cache = checked_mul(static_cast<std::size_t>(program.layers), 2 * backend.kv_bytes(kv_shape(program, sizes)),
                              "the KV cache");
  item(fmt::format("KV cache, {} sequences x {} tokens ({})", sizes.max_batch, sizes.max_tokens,
                   name_of(sizes.kv_dtype)),
       plan.kv_cache);
  // Row maps, next tokens, the history of each sequence, marks of seen tokens and the table of rotations.
  const std::size_t batch = static_cast<std::size_t>(sizes.max_batch);
  plan.arena +=
      rows_bytes(sizes.max_rows, 4, 4) + rows_bytes(sizes.max_logit_rows, 2, 4) + rows_bytes(sizes.max_batch, 16, 4);
  plan.arena +=
      rows_bytes(static_cast<std::int64_t>(batch), sizes.max_tokens, 4) + rows_bytes(sizes.max_batch, program.vocab, 1);
  plan.arena += rows_bytes(sizes.max_tokens, program.rotary.dims, sizeof(float));
  item("activations, maps and tables", plan.arena);
  plan.workspace = plan_workspace(program, nodes, sizes, backend);
  item("scratch of kernels and ops", plan.workspace);
  return plan;
}

}  // namespace nibble
