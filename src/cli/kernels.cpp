// nibble kernels: what this build has, and what this machine runs of it.
#include "cli/command.h"
#include "core/cpu.h"
#include "core/cpu_device.h"
#include "kernels/registry.h"
#include "report/table.h"

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <memory>

namespace nibble {
namespace {

/// Sites of the widths that models have, one a format, to ask a kernel what it takes.
LinearSite sample_site(std::optional<GptqFormat> format, DType compute) {
  constexpr std::int64_t kWidth = 1024;
  LinearSite site;
  site.parts = {{"sample", kWidth, kWidth, false, format}};
  site.compute = compute;
  return site;
}

/// "f32, bf16, GPTQ 2, 3, 4, 8 bits, act-order": what the kernel says yes to on this machine.
std::string formats_of(const LinearKernel& kernel, const DeviceInfo& device) {
  const auto takes = [&](std::optional<GptqFormat> format, DType compute) {
    return kernel.fit(sample_site(format, compute), device, 1).ok;
  };
  std::string dense;
  if (takes(std::nullopt, DType::f32)) dense = "f32";
  if (takes(std::nullopt, DType::bf16)) dense += dense.empty() ? "bf16" : ", bf16";
  std::string bits;
  bool act_order = false;
  for (const int width : {2, 3, 4, 8}) {
    for (const DType compute : {DType::f32, DType::bf16}) {
      GptqFormat format;
      format.bits = width;
      if (takes(format, compute) && !bits.ends_with(std::to_string(width))) {
        bits += fmt::format("{}{}", bits.empty() ? "" : ", ", width);
      }
      format.act_order = true;
      act_order = act_order || takes(format, compute);
    }
  }
  std::string out = dense;
  if (!bits.empty())
    out += fmt::format("{}GPTQ {} bits{}", out.empty() ? "" : ", ", bits, act_order ? ", act-order" : "");
  return out.empty() ? "nothing on this machine" : out;
}

int run(const std::string& format) {
  const DeviceInfo& device = cpu_device().info();
  Table table;
  std::string sets;
  for (const Isa isa : supported_isas()) sets += (sets.empty() ? "" : ", ") + std::string(name_of(isa));
  table.caption = fmt::format("{}: {} threads, {:.1f} GB, runs {} (supports {})", device.name, device.threads,
                              static_cast<double>(device.memory_bytes) / 1e9, name_of(active_isa()), sets);
  table.columns = {{"kernel", "kernel"},
                   {"device", "device"},
                   {"formats", "formats"},
                   {"accumulate", "accumulates in"},
                   {"deterministic", "deterministic"},
                   {"exact_activations", "exact activations"},
                   {"in_all", "in --kernel all"},
                   {"summary", "summary"}};
  for (const LinearKernel* kernel : kernels_for(DeviceKind::cpu)) {
    const KernelTraits traits = kernel->traits();
    table.rows.push_back({std::string(kernel->name()), std::string("cpu"), formats_of(*kernel, device),
                          std::string(traits.accumulate), traits.deterministic, traits.exact_activations, traits.in_all,
                          std::string(traits.summary)});
  }
  fmt::print("{}", render(table, table_format_from_name(format)));
  return 0;
}

const CommandRegistration kRegistration(
    {"kernels", "what kernels there are, and which this machine runs", [](CLI::App& app) {
       auto format = std::make_shared<std::string>("markdown");
       app.add_option("--format", *format, "markdown, csv, json, jsonl")->capture_default_str();
       return [format] { return run(*format); };
     }});

}  // namespace
}  // namespace nibble
