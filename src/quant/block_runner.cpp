#include "quant/block_runner.h"

#include "core/cpu_device.h"
#include "core/error.h"
#include "core/thread_pool.h"
#include "engine/lowering.h"
#include "quant/linalg.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

namespace nibble {
namespace {

// Rows that run through a segment together, unless a sequence is longer: enough for products at full speed, and little
// enough that what passes between two nodes of a 7B model (4096 x 11008 floats) stays below 200 MB.
constexpr std::int64_t kChunkRows = 4096;

std::vector<Node> nodes_of(const Program& program, int layer) {
  std::vector<Node> out;
  for (const Node& node : program.nodes) {
    if (node.layer == layer) out.push_back(node);
  }
  return out;
}

std::vector<std::size_t> linear_nodes(const std::vector<Node>& nodes) {
  std::vector<std::size_t> out;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    if (std::holds_alternative<LinearNode>(nodes[i].op)) out.push_back(i);
  }
  return out;
}

/// For each stop, and last for the block's end: the buffers whose values are needed from there on.
std::vector<std::vector<BufferId>> live_buffers(const std::vector<Node>& nodes, const std::vector<std::size_t>& stops,
                                                BufferId hidden) {
  std::vector<std::vector<BufferId>> live(stops.size() + 1);
  std::set<BufferId> now = {hidden};
  live.back() = {hidden};
  std::size_t stop = stops.size();
  for (std::size_t i = nodes.size(); i-- > 0;) {
    LoweredNode node;
    node.node = nodes[i];
    for (const BufferId id : node.writes()) now.erase(id);
    for (const BufferId id : node.reads()) now.insert(id);
    if (stop > 0 && stops[stop - 1] == i) live[--stop].assign(now.begin(), now.end());
  }
  return live;
}

Tensor rows_of(std::int64_t rows, std::int64_t columns) { return Tensor(DType::f32, {rows, columns}); }

}  // namespace

RowMap BlockRunner::Chunk::map() const {
  RowMap m;
  m.rows = rows;
  m.sequences = static_cast<std::int64_t>(row_begin.size()) - 1;
  m.positions = positions.data();
  m.slots = slots.data();
  m.row_begin = row_begin.data();
  return m;
}

BlockRunner::BlockRunner(const Program& program, const Checkpoint& checkpoint,
                         const std::vector<std::vector<std::int32_t>>& sequences)
    : program_(program), checkpoint_(checkpoint), backend_(make_cpu_backend()), stream_(cpu_device().make_stream()) {
  std::int64_t longest = 0;
  std::int64_t slots = 0;
  std::int64_t most_rows = 0;
  for (const auto& sequence : sequences) {
    const auto length = static_cast<std::int64_t>(sequence.size());
    longest = std::max(longest, length);
    if (chunks_.empty() || chunks_.back().rows + length > kChunkRows) {
      Chunk& fresh = chunks_.emplace_back();
      fresh.first_row = tokens_;
      fresh.row_begin.push_back(0);
    }
    Chunk& chunk = chunks_.back();
    const auto slot = static_cast<std::int32_t>(chunk.row_begin.size()) - 1;
    for (std::int64_t i = 0; i < length; ++i) {
      chunk.positions.push_back(static_cast<std::int32_t>(i));
      chunk.slots.push_back(slot);
    }
    chunk.rows += length;
    chunk.row_begin.push_back(static_cast<std::int32_t>(chunk.rows));
    tokens_ += length;
    slots = std::max<std::int64_t>(slots, slot + 1);
    most_rows = std::max(most_rows, chunk.rows);
  }
  if (tokens_ == 0) fail("there are no calibration tokens");

  Device& device = cpu_device();
  kv_view_.dtype = DType::f32;
  kv_view_.slots = slots;
  kv_view_.kv_heads = program.kv_heads;
  kv_view_.capacity = longest;
  kv_view_.head_dim = program.head_dim;
  const std::size_t half = backend_->kv_bytes(kv_view_);
  kv_ = device.allocate(2 * half, "the keys and values of calibration sequences");
  kv_view_.k = kv_->data();
  kv_view_.v = kv_->data() + half;
  workspace_ = device.allocate(backend_->attention_workspace(most_rows, program.heads, kv_view_),
                               "attention over calibration sequences");
  rope_ = RopeTable(program.rotary, longest, device, *stream_);
  rope_.for_prompt(longest, *stream_);
  embed(sequences);
}

std::size_t BlockRunner::memory(const Program& program, std::int64_t tokens, std::int64_t longest) {
  const std::vector<Node> nodes = nodes_of(program, 0);
  const std::vector<std::size_t> stops = linear_nodes(nodes);
  const auto live = live_buffers(nodes, stops, program.hidden_state);
  const auto columns = [&](BufferId id) { return program.buffers[static_cast<std::size_t>(id)].columns; };
  std::int64_t most = 0;  // a segment has the buffers of the stop before it and of that after it
  for (std::size_t i = 0; i < live.size(); ++i) {
    std::set<BufferId> both(live[i].begin(), live[i].end());
    if (i > 0) both.insert(live[i - 1].begin(), live[i - 1].end());
    std::int64_t sum = 0;
    for (const BufferId id : both) sum += columns(id);
    most = std::max(most, sum);
  }
  std::int64_t all = 0;
  for (const BufferDesc& buffer : program.buffers) all += buffer.rows == RowSet::tokens ? buffer.columns : 0;
  const std::int64_t chunk = std::min(tokens, std::max(longest, kChunkRows));
  return static_cast<std::size_t>(4 * (tokens * most + chunk * (all + 2 * program.kv_heads * program.head_dim)));
}

void BlockRunner::embed(const std::vector<std::vector<std::int32_t>>& sequences) {
  for (const Node& node : nodes_of(program_, -1)) {
    const auto* op = std::get_if<EmbedNode>(&node.op);
    if (op == nullptr) fail("a {} node before the first block cannot be run by the quantiser", kind_of(node));
    // Row by row out of the file: the table of a large vocabulary is never in memory as a whole.
    const TensorView table = checkpoint_.tensor(op->table);
    Tensor& hidden = kept_[op->y] = rows_of(tokens_, program_.hidden);
    std::span<float> rows = hidden.as<float>();
    const auto width = static_cast<std::size_t>(program_.hidden);
    std::size_t row = 0;
    for (const auto& sequence : sequences) {
      for (const std::int32_t id : sequence) {
        if (id < 0 || id >= program_.vocab)
          fail("token {} of the calibration text is not in the model's vocabulary of {}", id, program_.vocab);
        const std::span<float> to = rows.subspan(row++ * width, width);
        rows_to_float(table, id, 1, to);
        for (float& value : to) value *= op->scale;
      }
    }
  }
}

void BlockRunner::begin(int layer) {
  nodes_ = nodes_of(program_, layer);
  stops_ = linear_nodes(nodes_);
  live_ = live_buffers(nodes_, stops_, program_.hidden_state);
  norms_.clear();
  next_ = 0;
  run_segment({});
}

const LinearNode* BlockRunner::linear() const {
  return next_ < stops_.size() ? std::get_if<LinearNode>(&nodes_[stops_[next_]].op) : nullptr;
}

MatrixRef BlockRunner::inputs() const {
  const Tensor& x = kept_.at(linear()->x);
  return {const_cast<std::byte*>(x.bytes().data()), DType::f32, x.shape()[0], x.shape()[1], x.shape()[1]};
}

void BlockRunner::apply(std::span<const DenseLinear> parts) {
  ++next_;
  run_segment(parts);
}

void BlockRunner::save() {
  const Tensor& hidden = kept_.at(program_.hidden_state);
  saved_ = Tensor(DType::f32, hidden.shape());
  std::memcpy(saved_.bytes().data(), hidden.bytes().data(), hidden.bytes().size());
}

void BlockRunner::restore() {
  Tensor& hidden = kept_.at(program_.hidden_state);
  std::memcpy(hidden.bytes().data(), saved_.bytes().data(), hidden.bytes().size());
}

MatrixRef BlockRunner::matrix(BufferId id, const Chunk& chunk) {
  const std::int64_t columns = program_.buffers[static_cast<std::size_t>(id)].columns;
  if (const auto kept = kept_.find(id); kept != kept_.end()) {
    float* first = kept->second.as<float>().data() + chunk.first_row * columns;
    return {first, DType::f32, chunk.rows, columns, columns};
  }
  Tensor& passing = passing_[id];
  if (static_cast<std::int64_t>(passing.as<float>().size()) < chunk.rows * columns)
    passing = rows_of(chunk.rows, columns);
  return {passing.bytes().data(), DType::f32, chunk.rows, columns, columns};
}

/// Runs from the linear layer before stop next_ (with `parts`), or from the block's start, to that stop.
void BlockRunner::run_segment(std::span<const DenseLinear> parts) {
  const std::size_t first = next_ == 0 ? 0 : stops_[next_ - 1];
  const std::size_t last = next_ < stops_.size() ? stops_[next_] : nodes_.size();
  for (const BufferId id : live_[next_]) {
    if (!kept_.contains(id)) kept_[id] = rows_of(tokens_, program_.buffers[static_cast<std::size_t>(id)].columns);
  }
  for (const Chunk& chunk : chunks_) {
    for (std::size_t i = first; i < last; ++i) run_node(nodes_[i], chunk, parts);
  }
  std::erase_if(kept_, [&](const auto& entry) {
    return std::find(live_[next_].begin(), live_[next_].end(), entry.first) == live_[next_].end();
  });
}

const float* BlockRunner::norm_weight(const std::string& name) {
  if (name.empty()) return nullptr;
  std::vector<float>& weight = norms_[name];
  if (weight.empty()) weight = to_float(checkpoint_.tensor(name));
  return weight.data();
}

void BlockRunner::run_node(const Node& node, const Chunk& chunk, std::span<const DenseLinear> parts) {
  if (const auto* linear = std::get_if<LinearNode>(&node.op)) {
    run_linear(*linear, chunk, parts);
  } else if (const auto* norm = std::get_if<NormNode>(&node.op)) {
    backend_->norm({norm->kind, matrix(norm->x, chunk), norm->groups, norm_weight(norm->weight),
                    norm_weight(norm->bias), norm->eps, matrix(norm->y, chunk)},
                   *stream_);
  } else if (const auto* rotary = std::get_if<RotaryNode>(&node.op)) {
    backend_->rotary({chunk.map(), matrix(rotary->x, chunk), rotary->heads, rotary->head_dim, rotary->dims,
                      rotary->interleaved, rope_.data()},
                     *stream_);
  } else if (const auto* store = std::get_if<KvStoreNode>(&node.op)) {
    backend_->kv_store({chunk.map(), matrix(store->k, chunk), matrix(store->v, chunk), kv_view_}, *stream_);
  } else if (const auto* attention = std::get_if<AttentionNode>(&node.op)) {
    backend_->attention({chunk.map(), matrix(attention->q, chunk), attention->heads, kv_view_, attention->scale,
                         attention->window, attention->softcap, matrix(attention->y, chunk), workspace_->data()},
                        *stream_);
  } else if (const auto* gated = std::get_if<GatedNode>(&node.op)) {
    backend_->gated_activation(gated->activation, matrix(gated->gate, chunk), matrix(gated->up, chunk),
                               matrix(gated->y, chunk), *stream_);
  } else if (const auto* add = std::get_if<AddNode>(&node.op)) {
    backend_->add(matrix(add->a, chunk), matrix(add->b, chunk), matrix(add->y, chunk), *stream_);
  } else if (const auto* gather = std::get_if<GatherNode>(&node.op)) {  // here the logits of every row are wanted
    const MatrixRef x = matrix(gather->x, chunk);
    std::memcpy(matrix(gather->y, chunk).data, x.data, static_cast<std::size_t>(x.rows * x.columns) * sizeof(float));
  } else {
    fail("a {} node inside of a block cannot be run by the quantiser", kind_of(node));
  }
  stream_->synchronize();
}

void BlockRunner::run_linear(const LinearNode& node, const Chunk& chunk, std::span<const DenseLinear> parts) {
  const MatrixRef x = matrix(node.x, chunk);
  for (std::size_t i = 0; i < node.parts.size(); ++i) {
    const MatrixRef y = matrix(node.y[i], chunk);
    sgemm(false, true, x.rows, y.columns, x.columns, 1, x.f32_row(0), x.stride, parts[i].weight.data(), x.columns, 0,
          y.f32_row(0), y.stride);
    const std::vector<float>& bias = parts[i].bias;
    if (bias.empty()) continue;
    ThreadPool::instance().run([&](int thread, int threads) {
      const auto [begin, end] = split_range(y.rows, 1, thread, threads);
      for (std::int64_t r = begin; r < end; ++r) {
        float* row = y.f32_row(r);
        for (std::size_t n = 0; n < bias.size(); ++n) row[n] += bias[n];
      }
    });
  }
}

}  // namespace nibble
