#include "engine/encoder.h"

#include "core/checked.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/float_convert.h"
#include "engine/audio_input.h"
#include "engine/configuration.h"
#include "engine/lowering.h"
#include "engine/pass.h"
#include "engine/row_buckets.h"
#include "engine/weights.h"
#include "models/family.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <limits>
#include <map>
#include <tuple>
#include <utility>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// Rows that the activations of a pass may have on the CPU: those of a wide site (1536 columns) take 6 MB, a share of
// the last cache, while each panel of weights is still read once for hundreds of rows.
constexpr std::int64_t kPassRows = 1024;
// On a GPU: larger products run no faster, and activations stay some hundred MB.
constexpr std::int64_t kGpuPassRows = 65536;
// Rows of the head where all are wanted.
constexpr std::int64_t kAllRows = std::numeric_limits<std::int64_t>::max();
// Captured passes that are kept; each holds some hundred nodes.
constexpr std::size_t kMostGraphs = 256;

// The sequences [first, last) of a batch, which one pass takes.
struct Group {
  std::int64_t first = 0;
  std::int64_t last = 0;
};

// A batch of any kind. Images are sequences of one length, without tokens; recordings are sequences of their frames.
struct Input : EncoderBatch {
  std::span<const float> pixels = {};
  const AudioBatch* audio = nullptr;
};

// What a captured pass depends on beside the memory it works in.
struct GraphKey {
  std::int64_t rows = 0;
  std::int64_t sequences = 0;
  std::int64_t length = 0;  // of the padded batch that it leaves on the device; 0: it leaves none
  bool types = false;
  bool tiles = false;           // of short sequences
  std::int64_t steps = 0;       // of recordings: all of them,
  std::int64_t each_steps = 0;  // and AudioInput::settled_steps()
  auto operator<=>(const GraphKey&) const = default;
};

}  // namespace

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
  std::unique_ptr<Buffer> arena, scratch, tables, staging, pixels, padded;
  std::unique_ptr<AudioInput> audio;
  std::map<GraphKey, std::unique_ptr<Graph>> graphs;
  std::size_t maps_used = 0;        // bytes of the pass at hand in `staging`, which the rows asked of its head follow
  std::int64_t tiles_attended = 0;  // most_attended_tiles()
  MatrixRef resident_hidden;        // what on_device() gives
  std::vector<std::int32_t> lengths_of_batch;  // of the images or recordings at hand, in rows

  bool eager() const { return options.path == EncoderPath::eager; }
  bool gpu() const { return backend->device().info().kind == DeviceKind::cuda; }
  bool captures() const { return gpu() && !eager() && options.capture && (!audio || audio->repeats()); }
  bool head_has_rows() const {
    return program.head == HeadKind::masked_lm || program.head == HeadKind::token_class ||
           program.head == HeadKind::question_answer;
  }
  std::int64_t head_columns() const {
    return program.logits < 0 ? 0 : program.buffers[static_cast<std::size_t>(program.logits)].columns;
  }

  void configure();
  void allocate();
  void check_kind(std::string_view given, const EncoderWants& wants) const;
  void check(const EncoderBatch& batch) const;
  void check_head_rows(const EncoderBatch& batch, const EncoderWants& wants) const;
  void check(const ImageBatch& batch) const;
  Input input_of(const ImageBatch& batch);
  Input input_of(const AudioBatch& batch);
  void reserve_for(const Input& batch, const EncoderWants& wants) {
    const bool some = !wants.head || !wants.head_rows.empty();
    reserve(batch.sequences, batch.audio != nullptr ? batch.audio->steps : batch.length,
            some ? static_cast<std::int64_t>(wants.head_rows.size()) : kAllRows);
  }
  void reserve(std::int64_t sequences, std::int64_t length, std::int64_t head_rows);
  void forward(const Input& batch, const EncoderWants& wants, EncoderResult& result);
  std::vector<NodeTime> profile(const Input& batch);
  std::int64_t rows_of(const EncoderBatch& batch, std::int64_t sequence) const {
    return eager() ? batch.length : batch.lengths[static_cast<std::size_t>(sequence)];
  }
  std::vector<Group> groups(const EncoderBatch& batch) const;
  std::int32_t head_row(const EncoderBatch& batch, std::int64_t sequence) const;
  std::span<const TokenPlace> head_rows_of(const Group& group, const EncoderWants& wants) const;
  Pass begin_pass(const Input& batch, const Group& group, const EncoderWants& wants);
  // What comes before the first node.
  void begin_work(const Pass& pass) {
    const std::size_t asked = static_cast<std::size_t>(pass.logits) * sizeof(std::int32_t);
    stream->copy_to_device(tables->data(), staging->data(), maps_used + asked);
    if (audio) audio->enqueue();
  }
  MatrixRef padded_rows(const Group& group, std::int64_t length) const;
  void work(const Pass& pass, const Group& group, std::int64_t length, bool on_device);
  void replay(const Input& batch, const Pass& pass, const Group& group, bool on_device);
  void copy_out(const MatrixRef& from, std::int64_t row, std::size_t rows, float* to) const;
  void run(const Pass& pass, const std::function<void(std::size_t node)>& after) {
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      if (runner.skips(i, pass)) continue;
      enqueue(i, pass);
      if (after) after(i);
    }
  }
  void enqueue(std::size_t node, const Pass& pass) const {
    if (!runner.enqueue(node, pass)) fail("{} cannot be run by an encoder", nodes[node].name());
  }
  void take_rows(BufferId buffer, const Pass& pass, const EncoderBatch& batch, const Group& group, bool all_rows,
                 std::vector<float>& to) const;
};

void EncoderEngine::Impl::configure() {
  EngineOptions engine;
  engine.device = options.device;
  backend = make_backend(engine);
  stream = backend->device().make_stream();
  program = program_from_checkpoint(*checkpoint, options.part);
  if (!program.encoder) {
    fail(
        "{} is a {} model, which generates text: use nibble generate and bench gptq; encoders are bert, roberta and "
        "the like",
        checkpoint->folder().string(), program.architecture);
  }
  if (!options.head) drop_head(program);
  const BackendTraits traits = backend->traits();
  if (!traits.self_attention) fail("encoders do not run on {}: use --device cpu", backend->device().info().name);
  if (program.image && !traits.images)
    fail("encoders of images do not run on {}: use --device cpu", backend->device().info().name);
  if (program.audio && !traits.audio)
    fail("encoders of audio do not run on {}: use --device cpu", backend->device().info().name);
  const std::vector<std::string> embeddings = tables_of(program);
  compute = options.compute.value_or(default_compute(*checkpoint, program, backend->device().info().kind));
  if (compute != DType::f32 && compute != DType::bf16 && (compute != DType::f16 || !gpu())) {
    fail_usage("compute type {} is not supported on {}; use f32{} or bf16", name_of(compute),
               gpu() ? backend->device().info().name : "the CPU", gpu() ? ", f16" : "");
  }
  for (const std::string& table : embeddings) table_bytes += checkpoint->tensor(table).bytes.size();
  sizes.activations = traits.compute_activations ? compute : DType::f32;
  sizes.joins_parts = traits.joins_parts;
  sizes.compute = compute;
  sizes.materialise = eager();
  sizes.aligned_frames = traits.aligned_frames;

  LoweringOptions lowering;
  lowering.kernel = options.kernel;
  lowering.compute = compute;
  lowering.fuse = !eager();
  lowering.split_parts = eager();
  lowering.max_rows = gpu() ? kGpuPassRows : kPassRows;
  lowering.decode_rows = kPassRows;
  if (gpu() && !eager()) lowering.full_precision = "wgmma";
  lowering.backend = traits;
  nodes = lower(program, backend->device(), lowering);
  tiles_attended = most_attended_tiles(nodes);
  if (program.audio) {
    audio = std::make_unique<AudioInput>(
        *program.audio, *backend, *stream,
        AudioInput::Options{.activations = sizes.activations, .aligned = sizes.aligned_frames, .padded = eager()});
  }
}

void EncoderEngine::Impl::allocate() {
  Device& device = backend->device();
  std::size_t bytes = 0;
  std::vector<ArenaSlot> slots = plan_arena(program, nodes, sizes, bytes);
  arena = device.allocate(bytes, "activations");
  scratch = device.allocate(plan.workspace, "scratch of kernels");
  const auto rows = static_cast<std::size_t>(sizes.max_rows);
  const auto batch = static_cast<std::size_t>(sizes.max_batch);
  // Tokens, positions, types and rows asked for; where sequences, their frames and their tiles begin, and how much of
  // each counts.
  const std::size_t map_bytes = (4 * rows + 5 * (batch + 1)) * sizeof(std::int32_t);
  tables = device.allocate(map_bytes, "maps of rows");
  staging = device.allocate_staging(map_bytes);
  graphs.clear();
  if (program.image) {
    pixels = device.allocate(static_cast<std::size_t>(sizes.max_images * program.image->values()) * sizeof(float),
                             "the pixels of a pass");
  }
  if (audio) audio->allocate(sizes.max_images, sizes.max_steps);
  runner = PassRunner({.backend = backend.get(),
                       .stream = stream.get(),
                       .program = &program,
                       .nodes = &nodes,
                       .weights = &weights,
                       .arena = arena->data(),
                       .scratch = scratch->data() + parts_bytes(nodes, sizes.max_rows, device.info()),
                       .parts = scratch->data(),
                       .compute = compute,
                       .materialise = eager()},
                      std::move(slots));
}

void EncoderEngine::Impl::check_kind(std::string_view given, const EncoderWants& wants) const {
  if (given != input_kind_of(program)) {
    fail("{} is a {} model of {}, but {} given", checkpoint->folder().string(), program.architecture,
         input_kind_of(program),
         given == "text"    ? "tokens were"
         : given == "audio" ? "audio was"
                            : "images were");
  }
  if (wants.head && program.logits < 0) {
    fail("{} has no head (its architecture in config.json says so, or the tensors are missing): ask for hidden states",
         checkpoint->folder().string());
  }
  if (!wants.head_rows.empty() && !(wants.head && head_has_rows())) {
    fail("rows of a head were asked for, but {}: leave them out",
         wants.head ? "the head of " + checkpoint->folder().string() + " gives one for each sequence"
                    : "not what the head gives");
  }
}

void EncoderEngine::Impl::check(const ImageBatch& batch) const {
  const ImageShape& shape = *program.image;
  if (batch.images < 1) fail("a batch of {} images was given; expected at least one", batch.images);
  if (batch.channels != shape.channels || batch.height != shape.size || batch.width != shape.size) {
    fail(
        "images of {} x {} pixels (width, height) with {} channels were given, but {} takes {} x {} with {}: resize "
        "them as its preprocessor_config.json says",
        batch.width, batch.height, batch.channels, checkpoint->folder().string(), shape.size, shape.size,
        shape.channels);
  }
  if (batch.pixels.size() != static_cast<std::size_t>(checked_mul(batch.images, shape.values(), "a batch of images"))) {
    fail("a batch of {} images of {} x {} pixels with {} channels came with {} values", batch.images, batch.width,
         batch.height, batch.channels, batch.pixels.size());
  }
}

Input EncoderEngine::Impl::input_of(const ImageBatch& batch) {
  lengths_of_batch.assign(static_cast<std::size_t>(batch.images), static_cast<std::int32_t>(program.max_positions));
  return {{batch.images, program.max_positions, {}, lengths_of_batch, {}}, batch.pixels, nullptr};
}

Input EncoderEngine::Impl::input_of(const AudioBatch& batch) {
  const std::int64_t frames = program.audio->frames(batch.steps);
  lengths_of_batch.assign(static_cast<std::size_t>(batch.recordings), static_cast<std::int32_t>(frames));
  for (std::size_t r = 0; r < batch.lengths.size(); ++r)
    lengths_of_batch[r] = static_cast<std::int32_t>(program.audio->frames(batch.lengths[r]));
  return {{batch.recordings, frames, {}, lengths_of_batch, {}}, {}, &batch};
}

void EncoderEngine::Impl::check(const EncoderBatch& batch) const {
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

void EncoderEngine::Impl::check_head_rows(const EncoderBatch& batch, const EncoderWants& wants) const {
  std::pair<std::int32_t, std::int32_t> last{-1, -1};
  for (const TokenPlace& place : wants.head_rows) {
    if (place.sequence < 0 || place.sequence >= batch.sequences ||  //
        place.position < 0 || place.position >= batch.lengths[static_cast<std::size_t>(place.sequence)]) {
      fail("the head's row of token {} of sequence {} was asked for, which the batch does not have: count both from 0",
           place.position, place.sequence);
    }
    if (last >= std::pair{place.sequence, place.position}) {
      fail(
          "the head's row of token {} of sequence {} was asked for behind that of token {} of sequence {}: expected "
          "rows in the order of the batch, none twice",
          place.position, place.sequence, last.second, last.first);
    }
    last = {place.sequence, place.position};
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
    const bool full =
        rows + more > sizes.max_rows || rows >= wanted || (program.audio && s - group.first >= sizes.max_images);
    if (rows > 0 && full) {
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

// Those of a group among the rows of the head that are asked for.
std::span<const TokenPlace> EncoderEngine::Impl::head_rows_of(const Group& group, const EncoderWants& wants) const {
  const auto from = [&](std::int64_t sequence) {
    return std::partition_point(wants.head_rows.begin(), wants.head_rows.end(),
                                [&](const TokenPlace& place) { return place.sequence < sequence; });
  };
  return {from(group.first), from(group.last)};
}

// Writes a pass's maps to the staging memory, one behind the other, for a single copy to the device.
Pass EncoderEngine::Impl::begin_pass(const Input& batch, const Group& group, const EncoderWants& wants) {
  std::int64_t rows = 0;
  for (std::int64_t s = group.first; s < group.last; ++s) rows += rows_of(batch, s);
  Pass pass;
  pass.map.rows = captures() ? bucket_of(rows) : rows;
  pass.map.sequences = group.last - group.first;
  pass.length = eager() || program.image ? (program.image ? program.max_positions : batch.length) : 0;

  auto* host = reinterpret_cast<std::int32_t*>(staging->data());
  const auto take = [&](std::int64_t count) { return std::exchange(host, host + count); };
  const auto on_device = [&](const std::int32_t* at) {
    return reinterpret_cast<std::int32_t*>(tables->data()) + (at - reinterpret_cast<std::int32_t*>(staging->data()));
  };
  std::int32_t* const begin = take(pass.map.sequences + 1);
  std::int32_t* const counted = take(pass.map.sequences);
  const std::int64_t with_tokens = program.image || program.audio ? 0 : pass.map.rows;
  std::int32_t* const tokens = take(with_tokens);
  std::int32_t* const positions = take(with_tokens);
  std::int32_t* const types = take(batch.types.empty() ? 0 : with_tokens);
  begin[0] = 0;
  std::int64_t at = 0;
  for (std::int64_t s = group.first; s < group.last; ++s) {
    const std::int64_t i = s - group.first;
    const std::int64_t own = rows_of(batch, s);
    begin[i + 1] = begin[i] + static_cast<std::int32_t>(own);
    counted[i] = batch.lengths[static_cast<std::size_t>(s)];
    if (program.image || program.audio) continue;
    const std::size_t cell = static_cast<std::size_t>(s * batch.length);
    std::int32_t position = 0;
    for (std::int64_t j = 0; j < own; ++j) {
      const std::int32_t id = batch.ids[cell + static_cast<std::size_t>(j)];
      tokens[at + j] = id;
      positions[at + j] = id == program.skipped_token ? -1 : position++;
    }
    if (!batch.types.empty()) std::copy_n(batch.types.begin() + static_cast<std::ptrdiff_t>(cell), own, types + at);
    at += own;
  }
  // Rows that only fill the bucket are tokens of no sequence; nobody reads what becomes of them.
  for (; at < with_tokens; ++at) {
    tokens[at] = positions[at] = 0;
    if (!batch.types.empty()) types[at] = 0;
  }
  if (batch.audio != nullptr) {
    audio->begin(*batch.audio, group.first, group.last, captures(), pass);
    pass.token_begin.assign(begin, begin + pass.map.sequences + 1);
    pass.kept = on_device(counted);
    std::int32_t* const last_begin = take(pass.map.sequences);
    std::transform(pass.frame_begin.back().begin(), pass.frame_begin.back().end() - 1, last_begin,
                   [](std::int64_t row) { return static_cast<std::int32_t>(row); });
    pass.last_begin = on_device(last_begin);
  }
  const std::span<const std::int32_t> row_begin(begin, static_cast<std::size_t>(pass.map.sequences) + 1);
  if (pass.map.rows <= std::min(kMostFineRows, tiles_attended * SequenceTiles::kRows)) {
    const std::int64_t tiles = places_for_tiles(row_begin, pass.map.rows);
    auto* const at_host = reinterpret_cast<TileBegin*>(host);
    if (tiles > 0 && pack_tiles(row_begin, {at_host, static_cast<std::size_t>(tiles) + 1}) <= tiles_attended) {
      const std::int32_t* const first = on_device(take(2 * (tiles + 1)));
      // The rows of a capture are less than a step more than those of the sequences.
      static_assert(kBucketStep == SequenceTiles::kRows);
      pass.tiles = {tiles, ceil_div(pass.map.rows, SequenceTiles::kRows), reinterpret_cast<const TileBegin*>(first),
                    on_device(begin)};
    }
  }
  maps_used = static_cast<std::size_t>(reinterpret_cast<std::byte*>(host) - staging->data());
  std::int32_t* const asked = host;
  for (const TokenPlace& place : head_rows_of(group, wants))
    *take(1) = begin[place.sequence - group.first] + place.position;
  if (wants.head && wants.head_rows.empty()) {
    for (std::int64_t s = group.first; s < group.last; ++s) {
      const std::int32_t first = begin[s - group.first];
      if (!head_has_rows()) {
        *take(1) = first + head_row(batch, s);
        continue;
      }
      for (std::int32_t i = 0; i < batch.lengths[static_cast<std::size_t>(s)]; ++i) *take(1) = first + i;
    }
  }
  pass.map.tokens = on_device(tokens);
  pass.map.positions = on_device(positions);
  pass.map.row_begin = on_device(begin);
  pass.map.types = batch.types.empty() ? nullptr : on_device(types);
  pass.valid = eager() ? on_device(counted) : nullptr;
  pass.logit_rows = on_device(asked);
  pass.logits = host - asked;
  if (program.image) {
    pass.images = pass.map.sequences;
    pass.pixels = reinterpret_cast<const float*>(pixels->data());
    const auto values = static_cast<std::size_t>(program.image->values());
    const std::span<const float> part = batch.pixels.subspan(static_cast<std::size_t>(group.first) * values,
                                                             static_cast<std::size_t>(pass.images) * values);
    stream->copy_to_device(pixels->data(), part.data(), part.size_bytes());
  }
  return pass;
}

// Where the hidden states of a group's sequences go among those of the padded batch on the device.
MatrixRef EncoderEngine::Impl::padded_rows(const Group& group, std::int64_t length) const {
  MatrixRef out = resident_hidden;
  out.rows = (group.last - group.first) * length;
  out.data = static_cast<std::byte*>(out.data) +
             static_cast<std::size_t>(group.first * length * out.stride) * bytes_of(out.dtype);
  return out;
}

// Everything of a pass that runs on the device.
void EncoderEngine::Impl::work(const Pass& pass, const Group& group, std::int64_t length, bool on_device) {
  begin_work(pass);
  run(pass, {});
  if (on_device) {
    backend->pad_rows(runner.matrix(program.hidden_state, pass), pass.map.row_begin, pass.map.sequences, length,
                      padded_rows(group, length), *stream);
  }
}

// The same from a capture: of rows in steps, so that few are needed. What the head does depends on how many rows are
// asked of it: it is enqueued by itself.
void EncoderEngine::Impl::replay(const Input& batch, const Pass& pass, const Group& group, bool on_device) {
  const std::int64_t length = batch.length;
  GraphKey key{pass.map.rows, pass.map.sequences, on_device ? length : 0, pass.map.types != nullptr,
               pass.tiles.tiles > 0};
  if (batch.audio != nullptr) key.steps = pass.steps.rows, key.each_steps = audio->settled_steps(*batch.audio);
  Pass body = pass;
  body.logits = 0;
  if (const auto found = graphs.find(key); found != graphs.end()) {
    stream->launch(*found->second);
  } else {
    // What is made when it is first used (plans of products, code) is made now: not within a capture.
    work(body, group, length, on_device);
    stream->synchronize();
    if (graphs.size() >= kMostGraphs) graphs.clear();
    stream->begin_capture();
    work(body, group, length, on_device);
    graphs.emplace(key, stream->end_capture());
  }
  if (pass.logits == 0) return;
  stream->copy_to_device(tables->data() + maps_used, staging->data() + maps_used,
                         static_cast<std::size_t>(pass.logits) * sizeof(std::int32_t));
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    if (runner.skips(i, body)) enqueue(i, pass);
  }
}

// Rows of a buffer to the host as f32. What was enqueued before has run.
void EncoderEngine::Impl::copy_out(const MatrixRef& from, std::int64_t row, std::size_t rows, float* to) const {
  const std::size_t count = rows * static_cast<std::size_t>(from.columns);
  const std::byte* const first =
      static_cast<const std::byte*>(from.data) + static_cast<std::size_t>(row * from.stride) * bytes_of(from.dtype);
  if (from.dtype == DType::f32) {
    stream->copy_to_host(to, first, count * sizeof(float));
    return;
  }
  std::vector<std::uint16_t> raw(count);
  stream->copy_to_host(raw.data(), first, count * sizeof(std::uint16_t));
  stream->synchronize();
  for (std::size_t i = 0; i < count; ++i)
    to[i] = from.dtype == DType::f16 ? half_to_float(raw[i]) : bf16_to_float(raw[i]);
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
    copy_out(from, row, rows, first);
    std::fill(first + rows * width, first + static_cast<std::size_t>(batch.length) * width, 0.0F);
    row += static_cast<std::int64_t>(rows);
  }
}

void EncoderEngine::Impl::reserve(std::int64_t sequences, std::int64_t length, std::int64_t head_rows) {
  const std::int64_t steps = length;
  if (program.audio) {
    length = program.audio->frames(steps);
    if (length > program.max_positions) {
      fail("a recording of {} steps, {} rows, is more than the {} rows that {} takes: split it", steps, length,
           program.max_positions, checkpoint->folder().string());
    }
  }
  if (length > program.max_positions) {
    fail("a sequence of {} tokens is more than the {} positions that {} has: cut it, or split the text", length,
         program.max_positions, checkpoint->folder().string());
  }
  if (program.image) length = program.max_positions;
  const bool fits = length <= sizes.max_tokens && (!program.audio || steps <= sizes.max_steps) &&
                    (!head_has_rows() || std::min(head_rows, sizes.max_rows) <= sizes.max_logit_rows);
  if (arena && sequences <= sizes.max_batch && fits) return;
  head_rows = std::max(head_rows, arena ? sizes.max_logit_rows : 1);
  sizes.max_batch = std::max(sequences, arena ? sizes.max_batch : 1);
  sizes.max_tokens = std::max(length, arena ? sizes.max_tokens : 1);
  const std::int64_t all = checked_mul(sizes.max_batch, sizes.max_tokens, "the rows of a batch");
  const std::int64_t wanted = options.pass_rows > 0 ? options.pass_rows : gpu() ? kGpuPassRows : kPassRows;
  sizes.max_rows = eager() ? all : std::max(sizes.max_tokens, std::min(wanted, all));
  if (program.image || program.audio) sizes.max_images = sizes.max_rows / sizes.max_tokens;
  if (captures()) sizes.max_rows = bucket_of(sizes.max_rows);
  if (program.audio) sizes.max_steps = std::max(steps, sizes.max_steps);
  sizes.max_logit_rows = std::min(head_has_rows() ? head_rows : sizes.max_batch, sizes.max_rows);
  plan = make_plan(program, nodes, sizes, *backend, table_bytes);
  if (plan.total() > plan.device_memory) {
    constexpr double kGb = 1e9;
    const std::size_t needed = plan.total();
    const std::size_t there = plan.device_memory;
    arena.reset();
    fail(
        "a batch of {} sequences of {} tokens needs {:.2f} GB on the {} path, {:.2f} GB more than the {:.2f} GB that "
        "{} has: take a smaller batch, or shorter sequences",
        sizes.max_batch, sizes.max_tokens, static_cast<double>(needed) / kGb, name_of(options.path),
        static_cast<double>(needed - there) / kGb, static_cast<double>(there) / kGb, backend->device().info().name);
  }
  allocate();
}

void EncoderEngine::Impl::forward(const Input& batch, const EncoderWants& wants, EncoderResult& result) {
  reserve_for(batch, wants);
  const auto cells = static_cast<std::size_t>(batch.sequences * batch.length);
  const auto columns = static_cast<std::size_t>(head_columns());
  if (wants.hidden) result.hidden.resize(cells * static_cast<std::size_t>(program.hidden));
  if (wants.head) {
    const std::size_t rows = !wants.head_rows.empty() ? wants.head_rows.size()
                             : head_has_rows()        ? cells
                                                      : static_cast<std::size_t>(batch.sequences);
    result.head.resize(rows * columns);
  }
  if (wants.on_device) {
    if (!backend->traits().fuses_add_norm)
      fail("hidden states in device memory were asked for of {}, which has none", backend->device().info().name);
  }
  const std::vector<Group> passes = groups(batch);
  // Where every row is there already, hidden states are what the last node left.
  const bool padded_already = (eager() || program.image) && passes.size() == 1;
  const bool pads = wants.on_device && !padded_already;
  if (pads) {
    const std::size_t bytes = cells * static_cast<std::size_t>(program.hidden) * bytes_of(sizes.activations);
    if (!padded || padded->size() < bytes) {
      graphs.clear();
      padded.reset();
      padded = backend->device().allocate(bytes, "hidden states of a padded batch");
    }
    resident_hidden = {padded->data(), sizes.activations, static_cast<std::int64_t>(cells), program.hidden,
                       program.hidden};
  }
  for (const Group& group : passes) {
    const Pass pass = begin_pass(batch, group, wants);
    if (wants.on_device && padded_already) {
      resident_hidden = runner.matrix(program.hidden_state, pass);
      resident_hidden.rows = static_cast<std::int64_t>(cells);
    }
    if (captures()) {
      replay(batch, pass, group, pads);
    } else {
      work(pass, group, batch.length, pads);
    }
    // The next pass's maps go to the same memory.
    stream->synchronize();
    if (wants.hidden) take_rows(program.hidden_state, pass, batch, group, true, result.hidden);
    if (!wants.head) continue;
    if (head_has_rows() && wants.head_rows.empty()) {
      take_rows(program.logits, pass, batch, group, false, result.head);
    } else {
      const std::size_t first =
          wants.head_rows.empty()
              ? static_cast<std::size_t>(group.first)
              : static_cast<std::size_t>(head_rows_of(group, wants).data() - wants.head_rows.data());
      copy_out(runner.matrix(program.logits, pass), 0, static_cast<std::size_t>(pass.logits),
               result.head.data() + first * columns);
    }
  }
  if (wants.hidden || wants.head) stream->synchronize();
}

std::vector<NodeTime> EncoderEngine::Impl::profile(const Input& batch) {
  reserve_for(batch, {});
  std::vector<NodeTime> out;
  out.reserve(nodes.size());
  for (const LoweredNode& node : nodes) out.push_back({node.name(), node.node.layer, 0});
  for (const Group& group : groups(batch)) {
    const Pass pass = begin_pass(batch, group, {});
    begin_work(pass);
    Clock::time_point start = Clock::now();
    run(pass, [&](std::size_t node) {
      stream->synchronize();
      const Clock::time_point now = Clock::now();
      out[node].seconds += std::chrono::duration<double>(now - start).count();
      start = now;
    });
  }
  return out;
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
  m.weights.load_convolutions(*m.checkpoint, m.nodes, *m.backend, *m.stream, m.times);
  m.times.total = seconds_since(start);
}

EncoderEngine::~EncoderEngine() = default;

const Program& EncoderEngine::program() const { return impl_->program; }
const EncoderOptions& EncoderEngine::options() const { return impl_->options; }
DType EncoderEngine::compute() const { return impl_->compute; }
const MemoryPlan& EncoderEngine::plan() const { return impl_->plan; }
const LoadTimes& EncoderEngine::load_times() const { return impl_->times; }
const std::vector<LoweredNode>& EncoderEngine::nodes() const { return impl_->nodes; }

std::vector<SiteInfo> EncoderEngine::sites() const {
  std::vector<SiteInfo> out;
  for (std::size_t i = 0; i < impl_->nodes.size(); ++i) {
    const LoweredNode& node = impl_->nodes[i];
    if (node.linear() == nullptr) continue;
    out.push_back(
        {node.name(), node.node.layer, std::string(node.kernel->name()), node.site, impl_->weights.packed(i).bytes()});
  }
  return out;
}

Device& EncoderEngine::device() { return impl_->backend->device(); }
std::int64_t EncoderEngine::max_length() const { return impl_->program.max_positions; }
std::int64_t EncoderEngine::frames(std::int64_t steps) const {
  return impl_->program.audio ? impl_->program.audio->frames(steps) : 0;
}
std::int64_t EncoderEngine::head_columns() const { return impl_->head_columns(); }
bool EncoderEngine::head_has_rows() const { return impl_->head_has_rows(); }

Cost EncoderEngine::cost(std::span<const std::int32_t> lengths) const {
  const Impl& m = *impl_;
  Cost total;
  std::int64_t rows = 0;
  double pairs = 0;
  for (const std::int32_t length : lengths) {
    rows += length;
    pairs += static_cast<double>(length) * static_cast<double>(length);
  }
  const std::int64_t patches =
      m.program.image ? static_cast<std::int64_t>(lengths.size()) * m.program.image->patches() : 0;
  for (const LoweredNode& node : m.nodes) {
    if (const LinearNode* linear = node.linear()) {
      const RowSet set = m.program.buffers[static_cast<std::size_t>(linear->x)].rows;
      if (set == RowSet::logits) continue;
      const Cost cost = node.kernel->cost(node.site, set == RowSet::patches ? patches : rows);
      total.bytes += cost.bytes;
      total.flops += cost.flops;
    } else if (const auto* convolve = std::get_if<ConvolveNode>(&node.node.op)) {
      const BufferDesc& y = m.program.buffers[static_cast<std::size_t>(convolve->y)];
      const std::size_t stages = y.rows == RowSet::frames ? y.stages : m.program.audio->stages.size();
      std::int64_t made = 0;
      for (const std::int32_t length : lengths) made += m.program.audio->frames_for(length, stages);
      const double each = 2.0 * static_cast<double>(convolve->shape.window() * convolve->shape.outputs);
      total.flops += each * static_cast<double>(made);
    } else if (std::holds_alternative<SelfAttentionNode>(node.node.op)) {
      // q, k and v read, y written; two products.
      total.bytes += 16.0 * static_cast<double>(rows) * static_cast<double>(m.program.hidden);
      total.flops += 4.0 * pairs * static_cast<double>(m.program.hidden);
    }
  }
  return total;
}

void EncoderEngine::reserve(std::int64_t sequences, std::int64_t length) {
  impl_->reserve(sequences, length, kAllRows);
}

MatrixRef EncoderEngine::on_device() const { return impl_->resident_hidden; }

void EncoderEngine::release() {
  impl_->graphs.clear();
  impl_->padded.reset();
  impl_->resident_hidden = {};
  impl_->staging.reset();
  impl_->arena.reset();
  impl_->scratch.reset();
  impl_->tables.reset();
  impl_->pixels.reset();
  if (impl_->audio) impl_->audio->release();
}

void EncoderEngine::forward(const EncoderBatch& batch, const EncoderWants& wants, EncoderResult& result) {
  impl_->check_kind("text", wants);
  impl_->check(batch);
  impl_->check_head_rows(batch, wants);
  impl_->forward({batch}, wants, result);
}

void EncoderEngine::forward(const ImageBatch& batch, const EncoderWants& wants, EncoderResult& result) {
  impl_->check_kind("images", wants);
  impl_->check(batch);
  impl_->forward(impl_->input_of(batch), wants, result);
}

void EncoderEngine::forward(const AudioBatch& batch, const EncoderWants& wants, EncoderResult& result) {
  impl_->check_kind("audio", wants);
  check_audio(batch, *impl_->program.audio, impl_->checkpoint->folder().string());
  impl_->forward(impl_->input_of(batch), wants, result);
}

std::vector<NodeTime> EncoderEngine::profile(const EncoderBatch& batch) {
  impl_->check_kind("text", {});
  impl_->check(batch);
  return impl_->profile({batch});
}

std::vector<NodeTime> EncoderEngine::profile(const ImageBatch& batch) {
  impl_->check_kind("images", {});
  impl_->check(batch);
  return impl_->profile(impl_->input_of(batch));
}

std::vector<NodeTime> EncoderEngine::profile(const AudioBatch& batch) {
  impl_->check_kind("audio", {});
  check_audio(batch, *impl_->program.audio, impl_->checkpoint->folder().string());
  return impl_->profile(impl_->input_of(batch));
}

}  // namespace nibble
