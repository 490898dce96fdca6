#include "bench/bench_case.h"

#include "core/error.h"
#include "formats/json.h"

#include <nlohmann/json.hpp>

namespace nibble {
namespace {

using Json = nlohmann::json;

// Each struct has one list of its fields, by which it is both written and read.
template <typename Visitor>
void visit_fields(Visitor&& field, auto& c, const BenchCase*) {
  field("folder", c.folder);
  field("device", c.device);
  field("kernel", c.kernel);
  field("dtype", c.dtype);
  field("kv_dtype", c.kv_dtype);
  field("prefill_chunk", c.prefill_chunk);
  field("fuse", c.fuse);
  field("speed", c.speed);
  field("batch_size", c.batch_size);
  field("prompt_length", c.prompt_length);
  field("new_tokens", c.new_tokens);
  field("num_batches", c.num_batches);
  field("seed", c.seed);
  field("perplexity_file", c.perplexity_file);
  field("perplexity_procedure", c.perplexity_procedure);
  field("perplexity_context", c.perplexity_context);
  field("perplexity_stride", c.perplexity_stride);
  field("perplexity_windows", c.perplexity_windows);
}

template <typename Visitor>
void visit_fields(Visitor&& field, auto& r, const BenchResult*) {
  field("error", r.error);
  field("gptq", r.quantisation.gptq);
  field("act_order", r.quantisation.act_order);
  field("bits", r.quantisation.bits);
  field("group_size", r.quantisation.group_size);
  field("kernels", r.kernels);
  field("layers", r.layers);
  field("dtype", r.dtype);
  field("kv_dtype", r.kv_dtype);
  field("device", r.device);
  field("isa", r.isa);
  field("threads", r.threads);
  field("load_open", r.load.open);
  field("load_read", r.load.read);
  field("load_pack", r.load.pack);
  field("load_upload", r.load.upload);
  field("load_tune", r.load.tune);
  field("load_total", r.load.total);
  field("cached_share", r.cached_share);
  field("total_seconds", r.total_seconds);
  field("prefill_seconds", r.prefill_seconds);
  field("step_seconds", r.step_seconds);
  field("prefill_bytes", r.prefill_cost.bytes);
  field("prefill_flops", r.prefill_cost.flops);
  field("step_bytes", r.step_cost.bytes);
  field("step_flops", r.step_cost.flops);
  field("own_bandwidth", r.own_bandwidth.bytes_per_second);
  field("own_footprint", r.own_bandwidth.footprint);
  field("own_threads", r.own_bandwidth.threads);
  field("own_passes", r.own_bandwidth.passes);
  field("resident", r.memory.resident);
  field("anonymous", r.memory.anonymous);
  field("file", r.memory.file);
  field("peak_resident", r.memory.peak_resident);
  field("planned_bytes", r.planned_bytes);
  field("planned_weights", r.planned_weights);
  field("planned_kv_cache", r.planned_kv_cache);
  field("planned_arena", r.planned_arena);
  field("planned_workspace", r.planned_workspace);
  field("gpu_peak", r.gpu.peak.bytes);
  field("gpu_peak_source", r.gpu.peak.source);
  field("gpu_context", r.gpu.context);
  field("gpu_open_seconds", r.gpu.open_seconds);
  field("gpu_samples", r.gpu.run.samples);
  field("gpu_sm_clock_min", r.gpu.run.sm_clock_min);
  field("gpu_sm_clock_max", r.gpu.run.sm_clock_max);
  field("gpu_power", r.gpu.run.power);
  field("gpu_temperature", r.gpu.run.temperature);
  field("gpu_throttle", r.gpu.run.throttle);
  field("gpu_ecc_errors", r.gpu.run.ecc_errors);
  field("gpu_seconds", r.gpu.run.seconds);
  field("gpu_joules", r.gpu.run.joules);
  field("gpu_energy_source", r.gpu.run.energy_source);
  field("gpu_remarks", r.gpu.remarks);
  field("verified_sites", r.verified_sites);
  field("verified_error", r.verified_error);
  field("perplexity", r.perplexity);
  field("perplexity_running", r.perplexity_running);
  field("perplexity_error", r.perplexity_error);
  field("perplexity_tokens", r.perplexity_tokens);
}

struct Write {
  Json& json;
  template <typename T>
  void operator()(const char* name, const T& value) const {
    json[name] = value;
  }
  template <typename T>
  void operator()(const char* name, const std::optional<T>& value) const {
    json[name] = value ? Json(*value) : Json();
  }
};

struct Read {
  const Json& json;
  template <typename T>
  void operator()(const char* name, T& value) const {
    if (const auto found = json.find(name); found != json.end() && !found->is_null()) found->get_to(value);
  }
  template <typename T>
  void operator()(const char* name, std::optional<T>& value) const {
    if (const auto found = json.find(name); found != json.end() && !found->is_null()) value = found->get<T>();
  }
};

template <typename T>
std::string write(const T& value) {
  Json json = Json::object();
  visit_fields(Write{json}, value, static_cast<const T*>(nullptr));
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

template <typename T>
T read(std::string_view text, const char* what) {
  const Json json = parse_json(text, what);
  if (!json.is_object()) fail("{} should be a JSON object, found {}", what, json_excerpt(json));
  T out;
  try {
    visit_fields(Read{json}, out, static_cast<const T*>(nullptr));
  } catch (const Json::exception& e) {
    fail("{} has a value of the wrong type: {}", what, e.what());
  }
  return out;
}

}  // namespace

std::string to_json(const BenchCase& bench_case) { return write(bench_case); }
BenchCase bench_case_from_json(std::string_view text) { return read<BenchCase>(text, "the case to measure"); }
std::string to_json(const BenchResult& result) { return write(result); }
BenchResult bench_result_from_json(std::string_view text) { return read<BenchResult>(text, "the result of a case"); }

}  // namespace nibble
