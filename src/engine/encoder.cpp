#include "engine/encoder.h"

#include "core/checked.h"
#include "core/clock.h"
#include "core/error.h"
#include "engine/configuration.h"
#include "engine/lowering.h"
#include "engine/pass.h"
#include "engine/weights.h"
#include "models/family.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// Rows that the activations of a pass may have on the CPU: those of a wide site (1536 columns) take 6 MB, a share of
// the last cache, while each panel of weights is still read once for hundreds of rows.
constexpr std::int64_t kPassRows = 1024;

// The sequences [first, last) of a batch, which one pass takes.
struct Group {
  std::int64_t first = 0;
  std::int64_t last = 0;
};

}  // namespace

std::string_view name_of(EncoderPath path) { return path == EncoderPath::eager ? "eager" : "fast"; }

EncoderPath encoder_path_named(std::string_view name) {
  if (name == "eager") return EncoderPath::eager;
  if (name == "fast") return EncoderPath::fast;
  fail_usage("there is no path \"{}\": expected eager or fast", name);
}

double largest_difference(const EncoderBatch& batch, std::span<const float> a, std::span<const float> b) {
  const auto cells = static_cast<std::size_t>(batch.sequences * batch.length);
  if (a.size() != b.size() || cells == 0 || a.size() % cells != 0)
    fail("results of {} and {} values were compared for a batch of {} rows", a.size(), b.size(), cells);
  const std::size_t width = a.size() / cells;
  double worst = 0;
  double largest = 0;
  for (std::int64_t s = 0; s < batch.sequences; ++s) {
    const std::size_t first = static_cast<std::size_t>(s * batch.length) * width;
    const std::size_t count = static_cast<std::size_t>(batch.lengths[static_cast<std::size_t>(s)]) * width;
    for (std::size_t i = first; i < first + count; ++i) {
      const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
      if (std::isnan(difference)) return std::numeric_limits<double>::infinity();
      worst = std::max(worst, difference);
      largest = std::max(largest, std::abs(static_cast<double>(b[i])));
    }
  }
  return largest > 0 ? worst / largest : worst;
}

struct EncoderEngine::Impl {
  std::shared_ptr<const Checkpoint> checkpoint;
  EncoderOptions options;
  DType compute = DType::f32;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Stream> stream;
  Program program;
  std::vector<LoweredNode> nodes;
  RunSizes sizes;
  std::size_t table_bytes = 0;
  MemoryPlan plan;
  LoadTimes times;
  Weights weights;

  PassRunner runner;
  std::unique_ptr<Buffer> arena, scratch, tables;
  // [max_rows], but row_begin and valid: [max_batch + 1]
  std::int32_t *tokens = nullptr, *positions = nullptr, *types = nullptr, *head_rows = nullptr, *row_begin = nullptr,
               *valid = nullptr;

  bool eager() const { return options.path == EncoderPath::eager; }
  bool head_has_rows() const {
    return program.head == HeadKind::masked_lm || program.head == HeadKind::token_class ||
           program.head == HeadKind::question_answer;
  }
  std::int64_t head_columns() const {
    return program.logits < 0 ? 0 : program.buffers[static_cast<std::size_t>(program.logits)].columns;
  }

  void configure();
  void allocate();
  void check(const EncoderBatch& batch, const EncoderWants& wants) const;
  std::int64_t rows_of(const EncoderBatch& batch, std::int64_t sequence) const {
    return eager() ? batch.length : batch.lengths[static_cast<std::size_t>(sequence)];
  }
  std::vector<Group> groups(const EncoderBatch& batch) const;
  std::int32_t head_row(const EncoderBatch& batch, std::int64_t sequence) const;
  Pass begin_pass(const EncoderBatch& batch, const Group& group, bool head);
  void to_device(std::int32_t* to, const std::vector<std::int32_t>& from) {
    stream->copy_to_device(to, from.data(), from.size() * sizeof(std::int32_t));
  }
  void run(const Pass& pass, const std::function<void(std::size_t node)>& after) {
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      if (runner.skips(i, pass)) continue;
      if (!runner.enqueue(i, pass)) fail("{} cannot be run by an encoder", nodes[i].name());
      if (after) after(i);
    }
  }
  void take_rows(BufferId buffer, const Pass& pass, const EncoderBatch& batch, const Group& group, bool all_rows,
                 std::vector<float>& to) const;
};

void EncoderEngine::Impl::configure() {
  EngineOptions engine;
  engine.device = options.device;
  backend = make_backend(engine);
  stream = backend->device().make_stream();
  program = program_from_checkpoint(*checkpoint);
  if (!program.encoder) {
    fail(
        "{} is a {} model, which generates text: use nibble generate and bench gptq; encoders are bert, roberta and "
        "the like",
        checkpoint->folder().string(), program.architecture);
  }
  if (!options.head) drop_head(program);
  const BackendTraits traits = backend->traits();
  if (!traits.self_attention) fail("encoders do not run on {}: use --device cpu", backend->device().info().name);
  const auto& embed = std::get<EmbedNode>(program.nodes.front().op);
  const DType stored = checkpoint->tensor(embed.table).dtype;
  compute = options.compute.value_or(stored == DType::f32 ? DType::f32 : DType::bf16);
  if (compute != DType::f32 && compute != DType::bf16)
    fail_usage("compute type {} is not supported on the CPU; use f32 or bf16", name_of(compute));
  for (const std::string& table : {embed.table, embed.positions, embed.types}) {
    if (!table.empty()) table_bytes += checkpoint->tensor(table).bytes.size();
  }
  sizes.activations = traits.compute_activations ? compute : DType::f32;
  sizes.joins_parts = traits.joins_parts;
  sizes.compute = compute;
  sizes.materialise = eager();

  LoweringOptions lowering;
  lowering.compute = compute;
  lowering.fuse = !eager();
  lowering.split_parts = eager();
  lowering.max_rows = kPassRows;
  lowering.decode_rows = kPassRows;
  lowering.backend = traits;
  nodes = lower(program, backend->device(), lowering);
}

void EncoderEngine::Impl::allocate() {
  Device& device = backend->device();
  std::size_t bytes = 0;
  std::vector<ArenaSlot> slots = plan_arena(program, nodes, sizes, bytes);
  arena = device.allocate(bytes, "activations");
  scratch = device.allocate(plan.workspace, "scratch of kernels");
  const auto rows = static_cast<std::size_t>(sizes.max_rows);
  const auto batch = static_cast<std::size_t>(sizes.max_batch);
  tables = device.allocate((4 * rows + 2 * (batch + 1)) * sizeof(std::int32_t), "maps of rows");
  auto* at = reinterpret_cast<std::int32_t*>(tables->data());
  const auto take = [&at](std::size_t count) { return std::exchange(at, at + count); };
  tokens = take(rows);
  positions = take(rows);
  types = take(rows);
  head_rows = take(rows);
  row_begin = take(batch + 1);
  valid = take(batch + 1);
  runner = PassRunner({.backend = backend.get(),
                       .stream = stream.get(),
                       .program = &program,
                       .nodes = &nodes,
                       .weights = &weights,
                       .arena = arena->data(),
                       .scratch = scratch->data(),
                       .compute = compute,
                       .materialise = eager()},
                      std::move(slots));
}

void EncoderEngine::Impl::check(const EncoderBatch& batch, const EncoderWants& wants) const {
  const auto cells = static_cast<std::size_t>(checked_mul(batch.sequences, batch.length, "the tokens of a batch"));
  if (batch.sequences < 1 || batch.length < 1) {
    fail("a batch of {} sequences of {} tokens was given; expected at least one of each", batch.sequences,
         batch.length);
  }
  if (batch.ids.size() != cells || batch.lengths.size() != static_cast<std::size_t>(batch.sequences) ||
      (!batch.types.empty() && batch.types.size() != cells)) {
    fail("a batch of {} sequences of {} tokens came with {} ids, {} lengths and {} types", batch.sequences,
         batch.length, batch.ids.size(), batch.lengths.size(), batch.types.size());
  }
  if (!batch.types.empty() && program.types == 0)
    fail("token types were given to a {} model, which has none: leave them out", program.architecture);
  if (wants.head && program.logits < 0) {
    fail("{} has no head (its architecture in config.json says so, or the tensors are missing): ask for hidden states",
         checkpoint->folder().string());
  }
  for (std::int64_t s = 0; s < batch.sequences; ++s) {
    const std::int32_t length = batch.lengths[static_cast<std::size_t>(s)];
    if (length < 1 || length > batch.length)
      fail("sequence {} has a length of {}; expected 1 to {}", s, length, batch.length);
    for (std::int64_t i = 0; i < rows_of(batch, s); ++i) {
      const auto at = static_cast<std::size_t>(s * batch.length + i);
      if (batch.ids[at] < 0 || batch.ids[at] >= program.vocab) {
        fail("sequence {} holds token id {}, but the model's vocabulary has {} entries", s, batch.ids[at],
             program.vocab);
      }
      if (!batch.types.empty() && (batch.types[at] < 0 || batch.types[at] >= program.types)) {
        fail("sequence {} holds token type {}, but the model knows {}", s, batch.types[at], program.types);
      }
    }
  }
}

// Whole sequences, in passes of about the same number of rows.
std::vector<Group> EncoderEngine::Impl::groups(const EncoderBatch& batch) const {
  std::int64_t total = 0;
  for (std::int64_t s = 0; s < batch.sequences; ++s) total += rows_of(batch, s);
  const std::int64_t passes = ceil_div(total, sizes.max_rows);
  const std::int64_t wanted = ceil_div(total, passes);
  std::vector<Group> out;
  std::int64_t rows = 0;
  Group group;
  for (std::int64_t s = 0; s < batch.sequences; ++s) {
    const std::int64_t more = rows_of(batch, s);
    if (rows > 0 && (rows + more > sizes.max_rows || rows >= wanted)) {
      group.last = s;
      out.push_back(group);
      group.first = s;
      rows = 0;
    }
    rows += more;
  }
  group.last = batch.sequences;
  out.push_back(group);
  return out;
}

// The row of a sequence that the head looks at.
std::int32_t EncoderEngine::Impl::head_row(const EncoderBatch& batch, std::int64_t sequence) const {
  if (program.head_token == kFirstRow) return 0;
  const auto length = static_cast<std::size_t>(batch.lengths[static_cast<std::size_t>(sequence)]);
  const auto ids = batch.ids.subspan(static_cast<std::size_t>(sequence * batch.length), length);
  const auto found = program.head_token == kLargestId ? std::max_element(ids.begin(), ids.end())
                                                      : std::find(ids.begin(), ids.end(), program.head_token);
  return found == ids.end() ? 0 : static_cast<std::int32_t>(found - ids.begin());
}

Pass EncoderEngine::Impl::begin_pass(const EncoderBatch& batch, const Group& group, bool head) {
  std::vector<std::int32_t> t, p, ty, rows, begin = {0}, counted;
  for (std::int64_t s = group.first; s < group.last; ++s) {
    const std::int32_t length = batch.lengths[static_cast<std::size_t>(s)];
    std::int32_t position = 0;
    if (head && !head_has_rows()) rows.push_back(static_cast<std::int32_t>(t.size()) + head_row(batch, s));
    for (std::int64_t i = 0; i < rows_of(batch, s); ++i) {
      const auto at = static_cast<std::size_t>(s * batch.length + i);
      const std::int32_t id = batch.ids[at];
      if (head && head_has_rows() && i < length) rows.push_back(static_cast<std::int32_t>(t.size()));
      t.push_back(id);
      p.push_back(id == program.skipped_token ? -1 : position++);
      if (!batch.types.empty()) ty.push_back(batch.types[at]);
    }
    begin.push_back(static_cast<std::int32_t>(t.size()));
    counted.push_back(length);
  }
  to_device(tokens, t);
  to_device(positions, p);
  if (!ty.empty()) to_device(types, ty);
  to_device(row_begin, begin);
  to_device(valid, counted);
  to_device(head_rows, rows);
  Pass pass;
  pass.map.rows = static_cast<std::int64_t>(t.size());
  pass.map.sequences = group.last - group.first;
  pass.map.tokens = tokens;
  pass.map.positions = positions;
  pass.map.row_begin = row_begin;
  pass.map.types = ty.empty() ? nullptr : types;
  pass.valid = eager() ? valid : nullptr;
  pass.logit_rows = head_rows;
  pass.logits = static_cast<std::int64_t>(rows.size());
  return pass;
}

// Copies a buffer's rows to their places among the sequences' columns; zeros where there is no row. all_rows: there is
// one for each token, padding included, not only for those that count.
void EncoderEngine::Impl::take_rows(BufferId buffer, const Pass& pass, const EncoderBatch& batch, const Group& group,
                                    bool all_rows, std::vector<float>& to) const {
  const MatrixRef from = runner.matrix(buffer, pass);
  const auto width = static_cast<std::size_t>(from.columns);
  std::int64_t row = 0;
  for (std::int64_t s = group.first; s < group.last; ++s) {
    const auto rows = static_cast<std::size_t>(all_rows ? rows_of(batch, s)
                                                        : std::int64_t{batch.lengths[static_cast<std::size_t>(s)]});
    float* first = to.data() + static_cast<std::size_t>(s * batch.length) * width;
    stream->copy_to_host(first, from.f32_row(row), rows * width * sizeof(float));
    std::fill(first + rows * width, first + static_cast<std::size_t>(batch.length) * width, 0.0F);
    row += static_cast<std::int64_t>(rows);
  }
}

EncoderEngine::EncoderEngine(std::shared_ptr<const Checkpoint> checkpoint, EncoderOptions options)
    : impl_(std::make_unique<Impl>()) {
  Impl& m = *impl_;
  const Clock::time_point start = Clock::now();
  m.checkpoint = std::move(checkpoint);
  m.options = std::move(options);
  m.configure();
  m.plan = make_plan(m.program, m.nodes, m.sizes, *m.backend, m.table_bytes);
  m.times.open = seconds_since(start);
  m.weights.load(*m.checkpoint, m.nodes, m.backend->device(), *m.stream, m.times);
  m.times.total = seconds_since(start);
}

EncoderEngine::~EncoderEngine() = default;

const Program& EncoderEngine::program() const { return impl_->program; }
const EncoderOptions& EncoderEngine::options() const { return impl_->options; }
DType EncoderEngine::compute() const { return impl_->compute; }
const MemoryPlan& EncoderEngine::plan() const { return impl_->plan; }
const LoadTimes& EncoderEngine::load_times() const { return impl_->times; }
Device& EncoderEngine::device() { return impl_->backend->device(); }
std::int64_t EncoderEngine::max_length() const { return impl_->program.max_positions; }
std::int64_t EncoderEngine::head_columns() const { return impl_->head_columns(); }
bool EncoderEngine::head_has_rows() const { return impl_->head_has_rows(); }

void EncoderEngine::reserve(std::int64_t sequences, std::int64_t length) {
  Impl& m = *impl_;
  if (length > m.program.max_positions) {
    fail("a sequence of {} tokens is more than the {} positions that {} has: cut it, or split the text", length,
         m.program.max_positions, m.checkpoint->folder().string());
  }
  if (m.arena && sequences <= m.sizes.max_batch && length <= m.sizes.max_tokens) return;
  RunSizes& sizes = m.sizes;
  sizes.max_batch = std::max(sequences, m.arena ? sizes.max_batch : 1);
  sizes.max_tokens = std::max(length, m.arena ? sizes.max_tokens : 1);
  const std::int64_t all = checked_mul(sizes.max_batch, sizes.max_tokens, "the rows of a batch");
  const std::int64_t wanted = m.options.pass_rows > 0 ? m.options.pass_rows : kPassRows;
  sizes.max_rows = m.eager() ? all : std::max(sizes.max_tokens, std::min(wanted, all));
  sizes.max_logit_rows = m.head_has_rows() ? sizes.max_rows : std::min(sizes.max_batch, sizes.max_rows);
  m.plan = make_plan(m.program, m.nodes, sizes, *m.backend, m.table_bytes);
  if (m.plan.total() > m.plan.device_memory) {
    constexpr double kGb = 1e9;
    const std::size_t needed = m.plan.total();
    const std::size_t there = m.plan.device_memory;
    m.arena.reset();
    fail(
        "a batch of {} sequences of {} tokens needs {:.2f} GB on the {} path, {:.2f} GB more than the {:.2f} GB that "
        "{} has: take a smaller batch, or shorter sequences",
        sizes.max_batch, sizes.max_tokens, static_cast<double>(needed) / kGb, name_of(m.options.path),
        static_cast<double>(needed - there) / kGb, static_cast<double>(there) / kGb, m.backend->device().info().name);
  }
  m.allocate();
}

void EncoderEngine::release() {
  impl_->arena.reset();
  impl_->scratch.reset();
  impl_->tables.reset();
}

void EncoderEngine::forward(const EncoderBatch& batch, const EncoderWants& wants, EncoderResult& result) {
  Impl& m = *impl_;
  m.check(batch, wants);
  reserve(batch.sequences, batch.length);
  const auto cells = static_cast<std::size_t>(batch.sequences * batch.length);
  const auto columns = static_cast<std::size_t>(m.head_columns());
  if (wants.hidden) result.hidden.resize(cells * static_cast<std::size_t>(m.program.hidden));
  if (wants.head) result.head.resize((m.head_has_rows() ? cells : static_cast<std::size_t>(batch.sequences)) * columns);
  for (const Group& group : m.groups(batch)) {
    const Pass pass = m.begin_pass(batch, group, wants.head);
    m.run(pass, {});
    m.stream->synchronize();
    if (wants.hidden) m.take_rows(m.program.hidden_state, pass, batch, group, true, result.hidden);
    if (!wants.head) continue;
    if (m.head_has_rows()) {
      m.take_rows(m.program.logits, pass, batch, group, false, result.head);
    } else {
      const MatrixRef rows = m.runner.matrix(m.program.logits, pass);
      m.stream->copy_to_host(result.head.data() + static_cast<std::size_t>(group.first) * columns, rows.data,
                             static_cast<std::size_t>(pass.logits) * columns * sizeof(float));
    }
  }
  m.stream->synchronize();
}

Cost EncoderEngine::cost(std::span<const std::int32_t> lengths) const {
  const Impl& m = *impl_;
  Cost total;
  std::int64_t rows = 0;
  double pairs = 0;
  for (const std::int32_t length : lengths) {
    rows += length;
    pairs += static_cast<double>(length) * static_cast<double>(length);
  }
  for (const LoweredNode& node : m.nodes) {
    if (const LinearNode* linear = node.linear()) {
      if (m.program.buffers[static_cast<std::size_t>(linear->x)].rows != RowSet::tokens) continue;
      const Cost cost = node.kernel->cost(node.site, rows);
      total.bytes += cost.bytes;
      total.flops += cost.flops;
    } else if (std::holds_alternative<SelfAttentionNode>(node.node.op)) {
      // q, k and v read, y written; two products.
      total.bytes += 16.0 * static_cast<double>(rows) * static_cast<double>(m.program.hidden);
      total.flops += 4.0 * pairs * static_cast<double>(m.program.hidden);
    }
  }
  return total;
}

std::vector<NodeTime> EncoderEngine::profile(const EncoderBatch& batch) {
  Impl& m = *impl_;
  m.check(batch, {});
  reserve(batch.sequences, batch.length);
  std::vector<NodeTime> out;
  out.reserve(m.nodes.size());
  for (const LoweredNode& node : m.nodes) out.push_back({node.name(), node.node.layer, 0});
  for (const Group& group : m.groups(batch)) {
    const Pass pass = m.begin_pass(batch, group, false);
    Clock::time_point start = Clock::now();
    m.run(pass, [&](std::size_t node) {
      m.stream->synchronize();
      const Clock::time_point now = Clock::now();
      out[node].seconds += std::chrono::duration<double>(now - start).count();
      start = now;
    });
  }
  return out;
}

}  // namespace nibble
