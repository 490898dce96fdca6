#include "engine/engine.h"

#include "core/clock.h"
#include "core/error.h"
#include "engine/configuration.h"
#include "engine/lowering.h"
#include "engine/pass.h"
#include "engine/rope_table.h"
#include "engine/weights.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <utility>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

}  // namespace

struct Engine::Impl {
  std::shared_ptr<const Checkpoint> checkpoint;
  EngineOptions options;
  DType compute = DType::f32;
  DType kv_dtype = DType::f32;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Stream> stream;
  Program program;
  std::vector<LoweredNode> nodes;
  RunSizes sizes;
  MemoryPlan plan;
  LoadTimes times;
  std::vector<SiteInfo> sites;
  Weights weights;

  PassRunner runner;
  std::unique_ptr<Buffer> arena, kv, scratch, tables, tokens_chosen;
  RopeTable rope;

  // Maps of a pass that the host fills (prefill, score) and those that a decode step advances by itself.
  std::int32_t *tokens = nullptr, *positions = nullptr, *slot_of = nullptr, *row_begin = nullptr;
  std::int32_t *logit_rows = nullptr, *logit_positions = nullptr;
  std::int32_t *step_tokens = nullptr, *step_positions = nullptr, *step_slots = nullptr, *step_begin = nullptr,
               *step_rows = nullptr;
  std::int32_t *next = nullptr, *step_of = nullptr;
  std::int32_t* history = nullptr;  // [max_batch, max_tokens] chosen since prefill(), which the host can read
  std::uint8_t* seen = nullptr;
  SampleParams* params = nullptr;

  std::int64_t sequences = 0;
  bool penalised = false;
  std::vector<std::int64_t> lengths;
  std::deque<std::unique_ptr<Mark>> queued;  // of steps that have not been awaited
  std::int64_t awaited = 0;                  // steps since prefill()
  std::map<std::pair<std::int64_t, bool>, std::unique_ptr<Graph>> graphs;

  void configure();
  void allocate();
  void check_fits() const;
  KvView kv_view(int layer) const;
  void enqueue(std::size_t index, const Pass& pass);
  void run(const Pass& pass) {
    for (std::size_t i = 0; i < nodes.size(); ++i) enqueue(i, pass);
  }
  Pass step_pass() const;
  /// Makes the tokens just chosen those of the next step.
  void advance() {
    backend->advance({sequences, next, step_tokens, step_positions, history, sizes.max_tokens, step_of,
                      penalised ? seen : nullptr, program.vocab},
                     *stream);
  }
  void prefill_range(std::span<const std::vector<std::int32_t>> prompts, std::size_t first, std::size_t last);
  void check_tokens(std::span<const std::int32_t> ids, std::int64_t sequence) const;
  void to_device(std::int32_t* to, const std::vector<std::int32_t>& from) {
    stream->copy_to_device(to, from.data(), from.size() * sizeof(std::int32_t));
  }
};

void Engine::Impl::configure() {
  backend = make_backend(options);
  stream = backend->device().make_stream();
  EngineConfiguration decided = configure_engine(*checkpoint, options, *backend);
  times.tune = decided.tune_seconds;
  program = std::move(decided.program);
  compute = decided.compute;
  kv_dtype = decided.kv_dtype;
  sizes = decided.sizes;
  nodes = std::move(decided.nodes);
  plan = std::move(decided.plan);
}

void Engine::Impl::check_fits() const {
  if (plan.total() <= plan.device_memory) return;
  constexpr double kGb = 1e9;
  fail(
      "this run needs {:.2f} GB (weights {:.2f}, embedding {:.2f}, KV cache {:.2f}, activations and scratch {:.2f}), "
      "{:.2f} GB ({} bytes) more than the {:.2f} GB that {} has: "
      "lower --batch-size, --max-tokens or --prefill-chunk, or take a smaller model or fewer bits",
      static_cast<double>(plan.total()) / kGb, static_cast<double>(plan.weights) / kGb,
      static_cast<double>(plan.embedding) / kGb, static_cast<double>(plan.kv_cache) / kGb,
      static_cast<double>(plan.arena + plan.workspace) / kGb,
      static_cast<double>(plan.total() - plan.device_memory) / kGb, plan.total() - plan.device_memory,
      static_cast<double>(plan.device_memory) / kGb, backend->device().info().name);
}

void Engine::Impl::allocate() {
  Device& device = backend->device();
  std::size_t bytes = 0;
  std::vector<ArenaSlot> slots = plan_arena(program, nodes, sizes, bytes);
  arena = device.allocate(bytes, "activations");
  kv = device.allocate(plan.kv_cache, "the KV cache");
  scratch = device.allocate(plan.workspace, "scratch of kernels");
  runner = PassRunner({.backend = backend.get(),
                       .stream = stream.get(),
                       .program = &program,
                       .nodes = &nodes,
                       .weights = &weights,
                       .arena = arena->data(),
                       .scratch = scratch->data() + parts_bytes(nodes, sizes.max_rows, device.info()),
                       .parts = scratch->data(),
                       .compute = compute},
                      std::move(slots));

  const std::size_t rows = static_cast<std::size_t>(sizes.max_rows);
  const std::size_t batch = static_cast<std::size_t>(sizes.max_batch);
  const std::size_t wanted = static_cast<std::size_t>(sizes.max_logit_rows);
  const std::size_t history_size = batch * static_cast<std::size_t>(sizes.max_tokens);
  const std::size_t seen_size = batch * static_cast<std::size_t>(program.vocab);
  const std::size_t ints = 3 * rows + 2 * wanted + 9 * (batch + 1);
  tables = device.allocate(ints * sizeof(std::int32_t) + batch * sizeof(SampleParams) + seen_size, "maps of rows");
  // SampleParams first: it has the strictest alignment.
  params = reinterpret_cast<SampleParams*>(tables->data());
  auto* at = reinterpret_cast<std::int32_t*>(params + batch);
  const auto take = [&at](std::size_t count) { return std::exchange(at, at + count); };
  tokens = take(rows);
  positions = take(rows);
  slot_of = take(rows);
  logit_rows = take(wanted);
  logit_positions = take(wanted);
  row_begin = take(batch + 1);
  step_tokens = take(batch + 1);
  step_positions = take(batch + 1);
  step_slots = take(batch + 1);
  step_begin = take(batch + 1);
  step_rows = take(batch + 1);
  next = take(batch + 1);
  step_of = take(batch + 1);
  seen = reinterpret_cast<std::uint8_t*>(at);
  tokens_chosen = device.allocate_staging(history_size * sizeof(std::int32_t));
  history = reinterpret_cast<std::int32_t*>(tokens_chosen->data());

  std::vector<std::int32_t> iota(batch + 1);
  for (std::size_t i = 0; i <= batch; ++i) iota[i] = static_cast<std::int32_t>(i);
  to_device(step_slots, iota);
  to_device(step_begin, iota);
  to_device(step_rows, iota);
  rope = RopeTable(program.rotary, sizes.max_tokens, device, *stream);
}

KvView Engine::Impl::kv_view(int layer) const {
  KvView view = kv_shape(program, sizes);
  const std::size_t each = backend->kv_bytes(view);
  view.k = kv->data() + 2 * static_cast<std::size_t>(layer) * each;
  view.v = view.k + each;
  return view;
}

void Engine::Impl::enqueue(std::size_t index, const Pass& pass) {
  // A pass whose logits nobody wants (an early chunk of a long prompt) ends with the last block.
  if (runner.skips(index, pass) || runner.enqueue(index, pass)) return;
  const LoweredNode& lowered = nodes[index];
  const auto matrix = [&](BufferId id) { return runner.matrix(id, pass); };
  Backend& ops = *backend;
  Stream& s = *stream;
  if (const auto* rotary = std::get_if<RotaryNode>(&lowered.node.op)) {
    ops.rotary(
        {pass.map, matrix(rotary->x), rotary->heads, rotary->head_dim, rotary->dims, rotary->interleaved, rope.data()},
        s);
  } else if (const auto* store = std::get_if<KvStoreNode>(&lowered.node.op)) {
    ops.kv_store({pass.map, matrix(store->k), matrix(store->v), kv_view(lowered.node.layer)}, s);
  } else if (const auto* attention = std::get_if<AttentionNode>(&lowered.node.op)) {
    AttentionArgs args{pass.map,           matrix(attention->q),
                       attention->heads,   kv_view(lowered.node.layer),
                       attention->scale,   attention->window,
                       attention->softcap, matrix(attention->y),
                       scratch->data(),    {}};
    if (lowered.store) {
      args.store = AttentionStore{matrix(lowered.store->k), matrix(lowered.store->v), 0, false, rope.data()};
      if (lowered.rotary) {
        args.store->dims = lowered.rotary->dims;
        args.store->interleaved = lowered.rotary->interleaved;
      }
    }
    ops.attention(args, s);
  } else if (const auto* sample = std::get_if<SampleNode>(&lowered.node.op); sample != nullptr && pass.sample) {
    const std::int64_t f = pass.first_sequence;
    ops.sample({matrix(sample->logits), params + f, penalised ? seen + f * program.vocab : nullptr,
                pass.logit_positions, next + f, scratch->data()},
               s);
  }
}

Pass Engine::Impl::step_pass() const {
  Pass pass;
  pass.map = {sequences, sequences, step_tokens, step_positions, step_slots, step_begin};
  pass.logit_rows = step_rows;
  pass.logit_positions = step_positions;
  pass.logits = sequences;
  return pass;
}

void Engine::Impl::check_tokens(std::span<const std::int32_t> ids, std::int64_t sequence) const {
  if (ids.empty()) fail("sequence {} is empty: it should hold at least one token", sequence);
  if (static_cast<std::int64_t>(ids.size()) > sizes.max_tokens) {
    fail("sequence {} has {} tokens, more than the {} that this run was planned for: raise --max-tokens", sequence,
         ids.size(), sizes.max_tokens);
  }
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= program.vocab)
      fail("sequence {} holds token id {}, but the model's vocabulary has {} entries", sequence, id, program.vocab);
  }
}

// Takes the prompts [first, last) through the model, max_rows rows a pass.
void Engine::Impl::prefill_range(std::span<const std::vector<std::int32_t>> prompts, std::size_t first,
                                 std::size_t last) {
  std::vector<std::int32_t> t, p, sl, begin, lr, lp;
  std::size_t first_done = first;
  const auto flush = [&] {
    if (t.empty()) return;
    begin.push_back(static_cast<std::int32_t>(t.size()));
    to_device(tokens, t);
    to_device(positions, p);
    to_device(slot_of, sl);
    to_device(row_begin, begin);
    to_device(logit_rows, lr);
    to_device(logit_positions, lp);
    Pass pass;
    pass.map = {static_cast<std::int64_t>(t.size()),
                static_cast<std::int64_t>(begin.size()) - 1,
                tokens,
                positions,
                slot_of,
                row_begin};
    pass.logit_rows = logit_rows;
    pass.logit_positions = logit_positions;
    pass.logits = static_cast<std::int64_t>(lr.size());
    pass.first_sequence = static_cast<std::int64_t>(first_done);
    run(pass);
    stream->synchronize();
    first_done += lr.size();
    t.clear(), p.clear(), sl.clear(), begin.clear(), lr.clear(), lp.clear();
  };
  for (std::size_t i = first; i < last; ++i) {
    const std::vector<std::int32_t>& prompt = prompts[i];
    for (std::size_t k = 0; k < prompt.size(); ++k) {
      if (static_cast<std::int64_t>(t.size()) == sizes.max_rows) flush();
      if (t.empty() || k == 0) begin.push_back(static_cast<std::int32_t>(t.size()));
      t.push_back(prompt[k]);
      p.push_back(static_cast<std::int32_t>(k));
      sl.push_back(static_cast<std::int32_t>(i));
      if (k + 1 == prompt.size()) {
        lr.push_back(static_cast<std::int32_t>(t.size()) - 1);
        lp.push_back(static_cast<std::int32_t>(k));
      }
    }
  }
  flush();
}

Engine::Engine(std::shared_ptr<const Checkpoint> checkpoint, EngineOptions options) : impl_(std::make_unique<Impl>()) {
  Impl& m = *impl_;
  const Clock::time_point start = Clock::now();
  m.checkpoint = std::move(checkpoint);
  m.options = std::move(options);
  m.configure();
  m.check_fits();
  m.times.open = seconds_since(start) - m.times.tune;
  m.weights.load(*m.checkpoint, m.nodes, m.backend->device(), *m.stream, m.times);
  for (std::size_t i = 0; i < m.nodes.size(); ++i) {
    const LoweredNode& node = m.nodes[i];
    if (node.linear() == nullptr) continue;
    m.sites.push_back(
        {node.name(), node.node.layer, std::string(node.kernel->name()), node.site, m.weights.packed(i).bytes()});
  }
  m.allocate();
  m.times.total = seconds_since(start) - m.times.tune;
}

Engine::~Engine() = default;

const EngineOptions& Engine::options() const { return impl_->options; }
const Program& Engine::program() const { return impl_->program; }
const MemoryPlan& Engine::plan() const { return impl_->plan; }
const LoadTimes& Engine::load_times() const { return impl_->times; }
const std::vector<SiteInfo>& Engine::sites() const { return impl_->sites; }
DType Engine::compute() const { return impl_->compute; }
DType Engine::kv_dtype() const { return impl_->kv_dtype; }
std::int64_t Engine::max_tokens() const { return impl_->sizes.max_tokens; }
Device& Engine::device() { return impl_->backend->device(); }

void Engine::prefill(std::span<const std::vector<std::int32_t>> prompts, std::span<const SampleParams> params) {
  Impl& m = *impl_;
  const std::size_t n = prompts.size();
  if (n == 0 || static_cast<std::int64_t>(n) > m.sizes.max_batch) {
    fail("{} prompts were given to a run that was planned for 1 to {}", n, m.sizes.max_batch);
  }
  if (params.size() != 1 && params.size() != n)
    fail("{} sampling settings were given for {} prompts: give one, or one each", params.size(), n);
  for (std::size_t i = 0; i < n; ++i) m.check_tokens(prompts[i], static_cast<std::int64_t>(i));

  m.sequences = static_cast<std::int64_t>(n);
  std::vector<SampleParams> each(n);
  for (std::size_t i = 0; i < n; ++i) each[i] = params.size() == 1 ? params[0] : params[i];
  m.stream->copy_to_device(m.params, each.data(), n * sizeof(SampleParams));
  m.penalised = std::any_of(each.begin(), each.end(), [](const SampleParams& s) { return s.repetition_penalty != 1; });
  if (m.penalised) {
    std::vector<std::uint8_t> seen(n * static_cast<std::size_t>(m.program.vocab), 0);
    for (std::size_t i = 0; i < n; ++i) {
      for (const std::int32_t id : prompts[i])
        seen[i * static_cast<std::size_t>(m.program.vocab) + static_cast<std::size_t>(id)] = 1;
    }
    m.stream->copy_to_device(m.seen, seen.data(), seen.size());
  }

  if (m.program.rotary.dynamic_after == 0) {
    m.prefill_range(prompts, 0, n);
  } else {
    // Each prompt's rotations depend on its own length, so they go one after another.
    for (std::size_t i = 0; i < n; ++i) {
      m.rope.for_prompt(static_cast<std::int64_t>(prompts[i].size()), *m.stream);
      m.prefill_range(prompts, i, i + 1);
      m.rope.for_steps(*m.stream);
    }
  }

  // What the first decode step reads.
  std::vector<std::int32_t> last(n), zero(n, 0);
  m.lengths.assign(n, 0);
  for (std::size_t i = 0; i < n; ++i) {
    m.lengths[i] = static_cast<std::int64_t>(prompts[i].size());
    last[i] = static_cast<std::int32_t>(prompts[i].size()) - 1;
  }
  m.to_device(m.step_positions, last);
  m.to_device(m.step_of, zero);
  m.advance();
  m.stream->synchronize();
  m.queued.clear();
  m.awaited = 0;
}

void Engine::decode_step() {
  queue_step();
  await_step();
}

std::int64_t Engine::worth_queueing() const {
  return impl_->options.capture && impl_->backend->device().info().kind == DeviceKind::cuda ? 2 : 1;
}

bool Engine::has_room() const {
  const Impl& m = *impl_;
  return std::all_of(m.lengths.begin(), m.lengths.end(),
                     [&m](std::int64_t length) { return length < m.sizes.max_tokens; });
}

std::vector<std::int32_t> Engine::await_step() {
  Impl& m = *impl_;
  if (m.queued.empty()) fail("a decode step was awaited before one was queued");
  m.queued.front()->wait();
  m.queued.pop_front();
  ++m.awaited;
  std::vector<std::int32_t> out;
  out.reserve(static_cast<std::size_t>(m.sequences));
  for (std::int64_t i = 0; i < m.sequences; ++i) out.push_back(m.history[i * m.sizes.max_tokens + m.awaited]);
  return out;
}

void Engine::queue_step() {
  Impl& m = *impl_;
  if (m.sequences == 0) fail("a decode step was asked for before a prompt was given");
  for (std::int64_t i = 0; i < m.sequences; ++i) {
    std::int64_t& length = m.lengths[static_cast<std::size_t>(i)];
    if (length >= m.sizes.max_tokens) {
      fail("sequence {} has reached the {} tokens that this run was planned for: raise --max-tokens", i,
           m.sizes.max_tokens);
    }
    ++length;
  }
  const auto enqueue_step = [&m] {
    m.run(m.step_pass());
    m.advance();
  };
  if (!m.options.capture) {
    enqueue_step();
  } else {
    std::unique_ptr<Graph>& graph = m.graphs[{m.sequences, m.penalised}];
    if (!graph) {
      m.stream->begin_capture();
      enqueue_step();
      graph = m.stream->end_capture();
    }
    m.stream->launch(*graph);
  }
  m.queued.push_back(m.stream->mark());
}

std::vector<std::int32_t> Engine::next_tokens() const {
  const Impl& m = *impl_;
  std::vector<std::int32_t> out(static_cast<std::size_t>(m.sequences));
  m.stream->copy_to_host(out.data(), m.next, out.size() * sizeof(std::int32_t));
  m.stream->synchronize();
  return out;
}

std::int64_t Engine::sequence_length(std::int64_t i) const { return impl_->lengths.at(static_cast<std::size_t>(i)); }

std::vector<float> Engine::last_logits() const {
  const Impl& m = *impl_;
  std::vector<float> out(static_cast<std::size_t>(m.sequences * m.program.vocab));
  m.stream->copy_to_host(out.data(), m.runner.matrix(m.program.logits, Pass{}).data, out.size() * sizeof(float));
  m.stream->synchronize();
  return out;
}

void Engine::score(std::span<const std::int32_t> tokens, std::int64_t first,
                   const std::function<void(std::int64_t, std::int64_t, const float*)>& consume) {
  Impl& m = *impl_;
  m.check_tokens(tokens, 0);
  const std::int64_t n = static_cast<std::int64_t>(tokens.size());
  if (first < 0 || first > n) fail("rows from {} on were asked of a sequence of {} tokens", first, n);
  m.sequences = 0;
  m.rope.for_prompt(n, *m.stream);
  std::vector<float> logits;
  for (std::int64_t done = 0; done < n;) {
    // Rows before `first` need no logits and go in large passes; the others as many at a time as there is room for
    // logits.
    const bool wanted = done >= first;
    const std::int64_t rows = wanted ? std::min({n - done, m.sizes.max_logit_rows, m.sizes.max_rows})
                                     : std::min(first - done, m.sizes.max_rows);
    std::vector<std::int32_t> t(tokens.begin() + done, tokens.begin() + done + rows), p,
        sl(static_cast<std::size_t>(rows), 0), index;
    for (std::int64_t i = 0; i < rows; ++i) {
      p.push_back(static_cast<std::int32_t>(done + i));
      index.push_back(static_cast<std::int32_t>(i));
    }
    m.to_device(m.tokens, t);
    m.to_device(m.positions, p);
    m.to_device(m.slot_of, sl);
    m.to_device(m.row_begin, {0, static_cast<std::int32_t>(rows)});
    Pass pass;
    pass.map = {rows, 1, m.tokens, m.positions, m.slot_of, m.row_begin};
    pass.sample = false;
    if (wanted) {
      m.to_device(m.logit_rows, index);
      pass.logit_rows = m.logit_rows;
      pass.logits = rows;
    }
    m.run(pass);
    if (wanted) {
      logits.resize(static_cast<std::size_t>(rows * m.program.vocab));
      m.stream->copy_to_host(logits.data(), m.runner.matrix(m.program.logits, pass).data,
                             logits.size() * sizeof(float));
      m.stream->synchronize();
      consume(done, rows, logits.data());
    }
    done += rows;
  }
  m.rope.for_steps(*m.stream);
}

Cost Engine::pass_cost(std::int64_t rows, std::int64_t sequences, double context) const {
  const Impl& m = *impl_;
  Cost total;
  for (const LoweredNode& node : m.nodes) {
    const LinearNode* linear = node.linear();
    if (linear == nullptr) continue;
    const bool all = m.program.buffers[static_cast<std::size_t>(linear->x)].rows == RowSet::tokens;
    const Cost cost = node.kernel->cost(node.site, all ? rows : sequences);
    total.bytes += cost.bytes;
    total.flops += cost.flops;
  }
  const double token_bytes = 2.0 * static_cast<double>(m.program.layers * m.program.kv_heads * m.program.head_dim) *
                             static_cast<double>(bytes_of(m.kv_dtype));
  total.bytes += token_bytes * (static_cast<double>(sequences) * context + static_cast<double>(rows));
  total.flops += 4.0 * static_cast<double>(rows) * context *
                 static_cast<double>(m.program.layers * m.program.heads * m.program.head_dim);
  return total;
}

std::vector<NodeTime> Engine::profile_step() {
  Impl& m = *impl_;
  if (m.sequences == 0) fail("a profile was asked for before a prompt was given");
  const Pass pass = m.step_pass();
  std::vector<NodeTime> out;
  for (std::size_t i = 0; i < m.nodes.size(); ++i) {
    const Clock::time_point start = Clock::now();
    m.enqueue(i, pass);
    m.stream->synchronize();
    out.push_back({m.nodes[i].name(), m.nodes[i].node.layer, seconds_since(start)});
  }
  return out;
}

}  // namespace nibble
