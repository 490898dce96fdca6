#include "bench/probe.h"

#include "bench/child.h"
#include "core/error.h"
#include "core/log.h"
#include "engine/configuration.h"
#include "engine/encoder.h"
#include "engine/lowering.h"
#include "formats/json.h"
#include "kernels/registry.h"
#include "models/family.h"

#include <nlohmann/json.hpp>

#include <optional>

namespace nibble {
namespace {

using Json = nlohmann::json;

Json to_json(const ProbeAnswer& answer) {
  const MemoryRate& memory = answer.ceilings.memory;
  const GemmRates& gemm = answer.ceilings.gemm;
  return {{"error", answer.error},
          {"name", answer.name},
          {"copy", memory.copy_bytes_per_second},
          {"read", memory.read_bytes_per_second},
          {"footprint", memory.footprint},
          {"f32", gemm.f32},
          {"bf16", gemm.bf16},
          {"f16", gemm.f16},
          {"kernels", answer.kernels}};
}

ProbeAnswer answer_from(std::string_view line) {
  const Json json = parse_json(line, "the answer about a device");
  ProbeAnswer out;
  try {
    json.at("error").get_to(out.error);
    json.at("name").get_to(out.name);
    json.at("copy").get_to(out.ceilings.memory.copy_bytes_per_second);
    json.at("read").get_to(out.ceilings.memory.read_bytes_per_second);
    json.at("footprint").get_to(out.ceilings.memory.footprint);
    json.at("f32").get_to(out.ceilings.gemm.f32);
    json.at("bf16").get_to(out.ceilings.gemm.bf16);
    json.at("f16").get_to(out.ceilings.gemm.f16);
    json.at("kernels").get_to(out.kernels);
  } catch (const Json::exception& e) {
    fail("the answer about a device is not as expected: {}", e.what());
  }
  return out;
}

ProbeAnswer answer_to(const ProbeQuestion& question) {
  ProbeAnswer out;
  EngineOptions options;
  options.device = question.device;
  {
    const std::unique_ptr<Backend> backend = make_backend(options);
    out.name = backend->device().info().name;
    if (question.ceilings) out.ceilings = measure_ceilings(backend->device());
  }
  if (!question.folder.empty()) out.kernels = kernels_that_run(question.folder, question.device, question.dtype);
  return out;
}

}  // namespace

std::vector<std::string> kernels_that_run(const std::string& folder, const std::string& device,
                                          const std::string& dtype) {
  EngineOptions options;
  options.device = device;
  if (!dtype.empty()) options.compute = dtype_from_name(dtype);
  const std::unique_ptr<Backend> backend = make_backend(options);
  const Checkpoint checkpoint(folder);
  const bool encoder = is_encoder(folder);
  std::vector<std::string> out;
  for (const LinearKernel* kernel : kernels_for(backend->device().info().kind)) {
    if (!kernel->traits().in_all) continue;
    options.kernel = kernel->name();
    try {
      if (encoder) {
        LoweringOptions lowering;
        lowering.kernel = options.kernel;
        const Program program = program_from_checkpoint(checkpoint);
        lowering.compute =
            options.compute.value_or(default_compute(checkpoint, program, backend->device().info().kind));
        lowering.backend = backend->traits();
        lower(program, backend->device(), lowering);
      } else {
        configure_engine(checkpoint, options, *backend);
      }
      out.emplace_back(kernel->name());
    } catch (const Error& e) {
      log_info(fmt::format("--kernel all leaves out {}: {}", kernel->name(), e.what()));
    }
  }
  return out;
}

ProbeAnswer probe_in_child(const std::string& program, std::vector<std::string> arguments,
                           const ProbeQuestion& question) {
  arguments.push_back(Json{
      {"device", question.device},
      {"ceilings", question.ceilings},
      {"folder", question.folder},
      {"dtype",
       question.dtype}}.dump(-1, ' ', false, Json::error_handler_t::replace));
  std::optional<ProbeAnswer> answer;
  const ChildEnd end = run_child(program, arguments, [&](std::string_view line) { answer = answer_from(line); });
  if (end.interrupted) fail("was interrupted while looking at {}", question.device);
  if (!answer) fail("the process that looks at {} {}", question.device, describe(end));
  if (!answer->error.empty()) throw Error(answer->error);
  return *answer;
}

int answer_probe(std::string_view json) {
  end_with_parent();
  ProbeAnswer answer;
  try {
    const Json asked = parse_json(json, "the question about a device");
    answer = answer_to({asked.value("device", std::string()), asked.value("ceilings", false),
                        asked.value("folder", std::string()), asked.value("dtype", std::string())});
  } catch (const std::exception& e) {
    answer = ProbeAnswer{};
    answer.error = e.what();
  }
  report_line(to_json(answer).dump(-1, ' ', false, Json::error_handler_t::replace));
  return answer.error.empty() ? 0 : 1;
}

}  // namespace nibble
