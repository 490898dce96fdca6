// The engine: a checkpoint lowered onto a device, with planned memory, a KV cache, prefill and decode.
#pragma once

#include "core/device.h"
#include "core/matrix.h"
#include "engine/load_times.h"
#include "engine/plan.h"
#include "formats/checkpoint.h"
#include "kernels/linear_kernel.h"
#include "models/program.h"
#include "ops/backend.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace nibble {

struct EngineOptions {
  std::string device = "cpu";
  /// Kernel of the block's linear sites, by name; "auto": quantised sites by measured cost, others dense.
  std::string kernel = "auto";
  /// What the linear sites compute in: f32 or bf16. Unset: bf16 for 16-bit checkpoints, f32 for the rest.
  std::optional<DType> compute;
  /// Element type of the KV cache. Unset: as compute.
  std::optional<DType> kv_dtype;
  std::int64_t max_batch = 1;       // sequences at a time
  std::int64_t max_tokens = 0;      // tokens a sequence, prompt included; 0: the model's limit, at most 4096
  std::int64_t prefill_chunk = 0;   // rows a pass, longer prompts run in several; 0: what suits the device (CPU: 512)
  std::int64_t max_logit_rows = 0;  // rows a pass whose logits may be asked for; 0: max_batch
  bool fuse = true;                 // fold norms, activations and residuals into linear kernels that can
  bool capture = true;              // record a decode step once and replay it
};

/// Which kernel runs a site of the model, for reports.
struct SiteInfo {
  std::string name;  // "self_attn.q_proj|k_proj|v_proj"
  int layer = -1;
  std::string kernel;
  LinearSite site;
  std::size_t packed_bytes = 0;
};

/// Time per node kind of one pass, for `--profile`.
struct NodeTime {
  std::string name;
  int layer = -1;
  double seconds = 0;
};

class Engine {
 public:
  /// Loads: opens, plans, checks that the plan fits the device, reads and packs. Throws Error with what to change.
  Engine(std::shared_ptr<const Checkpoint> checkpoint, EngineOptions options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const EngineOptions& options() const;
  const Program& program() const;
  const MemoryPlan& plan() const;
  const LoadTimes& load_times() const;
  const std::vector<SiteInfo>& sites() const;
  DType compute() const;
  DType kv_dtype() const;
  std::int64_t max_tokens() const;
  Device& device();

  /// Forgets all sequences and takes these prompts (1 to max_batch, each 1 to max_tokens ids, of any lengths) through
  /// the model. Afterwards each has its next token chosen (params: one for each prompt, or one for all).
  void prefill(std::span<const std::vector<std::int32_t>> prompts, std::span<const SampleParams> params);
  /// One more token for every sequence.
  void decode_step();
  /// Enqueues a step of decode_step() and returns: on a GPU the host can read one step's tokens while the next runs.
  void queue_step();
  /// Waits for the oldest queued step that has not been awaited, and returns the tokens that it chose.
  std::vector<std::int32_t> await_step();
  /// How many steps are worth having in the queue: 1 where they run as they are queued.
  std::int64_t worth_queueing() const;
  /// Whether one more step fits in what this run was planned for.
  bool has_room() const;
  /// The next token of each sequence, chosen by the last prefill() or decode_step() and not yet run through the model.
  std::vector<std::int32_t> next_tokens() const;
  /// Tokens of sequence i that have been run through the model: its prompt, and one a decode step.
  std::int64_t sequence_length(std::int64_t i) const;
  /// Logits [sequences, vocab] f32 of the last pass, before sampling changed them where it is not greedy.
  std::vector<float> last_logits() const;

  /// Takes one sequence through the model from nothing and hands out the logits of rows [first, tokens.size()), in
  /// order, some rows a call: consume(first_row, rows, logits [rows, vocab]). Used for perplexity and verification.
  void score(std::span<const std::int32_t> tokens, std::int64_t first,
             const std::function<void(std::int64_t first_row, std::int64_t rows, const float* logits)>& consume);

  /// Bytes and operations of one pass over `rows` rows in `sequences` sequences whose contexts average `context`
  /// tokens: every linear site's least cost as it is stored, the KV cache read and written.
  Cost pass_cost(std::int64_t rows, std::int64_t sequences, double context) const;

  /// One decode step at the current state, each node timed by itself.
  std::vector<NodeTime> profile_step();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
