// nibble kernels: what this build has, and what this machine runs of it.
#include "cli/command.h"
#include "cli/device_list.h"
#include "core/cpu.h"
#include "kernels/registry.h"
#include "report/table.h"

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <memory>
#include <optional>
#include <vector>

namespace nibble {
namespace {

/// Sites of the widths that models have, one a format, to ask a kernel what it takes.
LinearSite sample_site(std::optional<GptqFormat> format, DType compute, DeviceKind device) {
  constexpr std::int64_t kWidth = 1024;
  LinearSite site;
  site.parts = {{"sample", kWidth, kWidth, false, format}};
  site.compute = compute;
  // On the CPU activations are f32 between sites, on a GPU of the type that is computed in.
  if (device != DeviceKind::cpu) site.x_dtype = site.y_dtype = compute;
  return site;
}

/// The types that the engine may compute in on this device.
std::vector<DType> compute_types(DeviceKind device) {
  if (device == DeviceKind::cpu) return {DType::f32, DType::bf16};
  return {DType::f32, DType::bf16, DType::f16};
}

/// "f32, bf16, GPTQ 2, 3, 4, 8 bits, act-order": what the kernel says yes to on this device.
std::string formats_of(const LinearKernel& kernel, const DeviceInfo& device) {
  const std::vector<DType> types = compute_types(device.kind);
  const auto takes = [&](std::optional<GptqFormat> format, DType compute) {
    return kernel.fit(sample_site(format, compute, device.kind), device, 1).ok;
  };
  std::string out;
  const auto add = [&out](std::string_view text) { out += fmt::format("{}{}", out.empty() ? "" : ", ", text); };
  for (const DType compute : types) {
    if (takes(std::nullopt, compute)) add(name_of(compute));
  }
  std::string bits;
  bool act_order = false;
  for (const int width : {2, 3, 4, 8}) {
    for (const DType compute : types) {
      GptqFormat format;
      format.bits = width;
      if (takes(format, compute) && !bits.ends_with(std::to_string(width))) {
        bits += fmt::format("{}{}", bits.empty() ? "" : ", ", width);
      }
      format.act_order = true;
      act_order = act_order || takes(format, compute);
    }
  }
  if (!bits.empty()) add(fmt::format("GPTQ {} bits{}", bits, act_order ? ", act-order" : ""));
  return out.empty() ? "nothing on this machine" : out;
}

std::string describe(const DeviceInfo& device) {
  const double gb = static_cast<double>(device.memory_bytes) / 1e9;
  if (device.kind != DeviceKind::cpu) {
    return fmt::format("{}: {} multiprocessors, {:.1f} GB free, {}", device.name, device.threads, gb, device.isa);
  }
  std::string sets;
  for (const Isa isa : supported_isas()) sets += (sets.empty() ? "" : ", ") + std::string(name_of(isa));
  return fmt::format("{}: {} threads, {:.1f} GB, runs {} (supports {})", device.name, device.threads, gb, device.isa,
                     sets);
}

int run(const std::string& device_name, const std::string& format) {
  std::string no_gpu;
  const std::vector<std::unique_ptr<Backend>> devices = devices_named(device_name, no_gpu);
  Table table;
  table.columns = {{"kernel", "kernel"},
                   {"device", "device"},
                   {"formats", "formats"},
                   {"accumulate", "accumulates in"},
                   {"deterministic", "deterministic"},
                   {"exact_activations", "exact activations"},
                   {"in_all", "in --kernel all"},
                   {"summary", "summary"}};
  for (const std::unique_ptr<Backend>& backend : devices) {
    const DeviceInfo& device = backend->device().info();
    table.caption += fmt::format("{}{}.", table.caption.empty() ? "" : " ", describe(device));
    for (const LinearKernel* kernel : kernels_for(device.kind)) {
      const KernelTraits traits = kernel->traits();
      table.rows.push_back({std::string(kernel->name()), std::string(device.kind == DeviceKind::cpu ? "cpu" : "cuda"),
                            formats_of(*kernel, device), std::string(traits.accumulate), traits.deterministic,
                            traits.exact_activations, traits.in_all, std::string(traits.summary)});
    }
  }
  if (!no_gpu.empty()) table.caption += " " + no_gpu;
  fmt::print("{}", render(table, table_format_from_name(format)));
  return 0;
}

const CommandRegistration kRegistration(
    {"kernels", "what kernels there are, and which this machine runs", [](CLI::App& app) {
       auto device = std::make_shared<std::string>("auto");
       auto format = std::make_shared<std::string>("markdown");
       app.add_option("--device", *device, "auto (the CPU, and a GPU where there is one), cpu, cuda, cuda:N")
           ->capture_default_str();
       app.add_option("--format", *format, "markdown, csv, json, jsonl")->capture_default_str();
       return [device, format] { return run(*device, *format); };
     }});

}  // namespace
}  // namespace nibble
