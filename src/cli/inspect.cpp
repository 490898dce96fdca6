// nibble inspect FOLDER: what is in a model folder, and what each kernel says of it.
#include "cli/command.h"
#include "core/error.h"
#include "engine/configuration.h"
#include "engine/weights.h"
#include "formats/checkpoint.h"
#include "formats/hub_cache.h"
#include "formats/quant_config.h"
#include "kernels/registry.h"
#include "models/family.h"
#include "report/table.h"

#include <CLI/CLI.hpp>

#include <map>
#include <memory>
#include <set>

namespace nibble {
namespace {

constexpr double kMb = 1e6;

struct Arguments {
  std::string folder;
  std::string revision = "main";
  std::string device = "auto";
  bool tensors = false;
};

void print_sizes(const Checkpoint& checkpoint) {
  std::map<std::string, std::pair<std::int64_t, std::size_t>> by_type;
  for (const std::string& name : checkpoint.names()) {
    const TensorView tensor = checkpoint.tensor(name);
    auto& [count, bytes] = by_type[std::string(name_of(tensor.dtype))];
    ++count;
    bytes += tensor.bytes.size();
  }
  Table table;
  table.columns = {{"dtype", "dtype"}, {"tensors", "tensors"}, {"mb", "MB"}};
  for (const auto& [type, sum] : by_type)
    table.rows.push_back({type, sum.first, static_cast<double>(sum.second) / kMb});
  fmt::print("\n{}", to_markdown(table));
}

void print_tensors(const Checkpoint& checkpoint) {
  Table table;
  table.columns = {{"tensor", "tensor"}, {"dtype", "dtype"}, {"shape", "shape"}, {"file", "file"}};
  for (const std::string& name : checkpoint.names()) {
    const TensorView tensor = checkpoint.tensor(name);
    table.rows.push_back({name, std::string(name_of(tensor.dtype)), to_string(tensor.shape),
                          checkpoint.file_of(name).filename().string()});
  }
  fmt::print("\n{}", to_markdown(table));
}

void print_quantisation(const std::filesystem::path& folder) {
  const auto quant = find_quant_config(folder);
  if (!quant) {
    fmt::print("quantisation: none\n");
    return;
  }
  fmt::print("quantisation: GPTQ, {} bits, group size {}, {}, {}; zeros as {} ({})\n", quant->linear.bits,
             quant->linear.group_size, quant->linear.sym ? "symmetric" : "asymmetric",
             quant->linear.desc_act ? "desc_act" : "no desc_act",
             quant->zeros == ZeroFormat::v1 ? "gptq (v1)" : "gptq_v2", quant->source);
}

std::string format_of(const LinearDesc& part) {
  if (!part.gptq) return "full precision";
  return fmt::format("{} bits, group {}, {}{}", part.gptq->bits, part.gptq->group_size,
                     part.gptq->symmetric ? "sym" : "asym", part.gptq->act_order ? ", act-order" : "");
}

std::string layers_text(const std::vector<int>& layers) {
  if (layers.size() == 1) return layers.front() < 0 ? "-" : std::to_string(layers.front());
  return fmt::format("{} to {} ({})", layers.front(), layers.back(), layers.size());
}

/// "yes", "f16, bf16 only: ..." or "no: ...": what a kernel says of a site in the types that the device computes in.
std::string answer_of(const LinearKernel& kernel, LinearSite site, const DeviceInfo& device) {
  const bool cpu = device.kind == DeviceKind::cpu;
  std::string takes;
  std::string reason;
  for (const DType compute : {DType::f32, DType::bf16, DType::f16}) {
    if (cpu && compute == DType::f16) continue;
    site.compute = compute;
    // On the CPU activations are f32 between sites, on a GPU of the type that is computed in.
    if (!cpu) site.x_dtype = site.y_dtype = compute;
    const Fit fit = kernel.fit(site, device, 1);
    if (fit.ok) {
      takes += fmt::format("{}{}", takes.empty() ? "" : ", ", name_of(compute));
    } else if (reason.empty()) {
      reason = fit.reason;
    }
  }
  return reason.empty() ? "yes" : takes.empty() ? "no: " + reason : fmt::format("{} only: {}", takes, reason);
}

// Each distinct site of the model, and what every kernel of the device says of it.
void print_fits(const Checkpoint& checkpoint, const Program& program, const DeviceInfo& device) {
  const auto quant = find_quant_config(checkpoint.folder());
  struct Kind {
    LinearSite site;
    std::string name;
    std::vector<int> layers;
  };
  std::map<std::string, Kind> kinds;
  std::vector<std::string> order;
  for (const Node& node : program.nodes) {
    const auto* linear = std::get_if<LinearNode>(&node.op);
    if (linear == nullptr) continue;
    LinearSite site;
    site.parts = linear->parts;
    std::string shape;
    std::string name;
    for (const LinearDesc& part : site.parts) {
      shape += fmt::format("{}x{} {};", part.in_features, part.out_features, format_of(part));
      name += (name.empty() ? "" : "|") + part.name.substr(part.name.rfind('.') + 1);
    }
    const std::string key = name + shape;
    if (!kinds.contains(key)) {
      order.push_back(key);
      // The tensors know better than the configuration whether rows are out of order, and how large groups are.
      std::vector<LoadedLinear> loaded;
      load_site(checkpoint, quant, *linear, site, loaded);
      drop_linear(checkpoint, *linear);
      kinds[key] = {site, name, {}};
    }
    kinds[key].layers.push_back(node.layer);
  }
  Table table;
  table.columns = {{"site", "site"}, {"layers", "layers"}, {"in", "in"}, {"out", "out"}, {"format", "format"}};
  const auto kernels = kernels_for(device.kind);
  for (const LinearKernel* kernel : kernels)
    table.columns.push_back({std::string(kernel->name()), std::string(kernel->name())});
  for (const std::string& key : order) {
    const Kind& kind = kinds[key];
    std::vector<Cell> row = {kind.name, layers_text(kind.layers), kind.site.in_features(), kind.site.out_features(),
                             format_of(kind.site.parts.front())};
    for (const LinearKernel* kernel : kernels) row.emplace_back(answer_of(*kernel, kind.site, device));
    table.rows.push_back(std::move(row));
  }
  table.caption = fmt::format("What the kernels of {} say:", device.name);
  fmt::print("\n{}", to_markdown(table));
}

int run(const Arguments& arguments) {
  const std::filesystem::path folder = resolve_model(arguments.folder, arguments.revision);
  const Checkpoint checkpoint(folder);
  std::set<std::filesystem::path> files;
  for (const std::string& name : checkpoint.names()) files.insert(checkpoint.file_of(name));
  fmt::print("{}: {} tensors in {} {}, {:.2f} MB, {}\n", folder.string(), checkpoint.names().size(), files.size(),
             files.size() == 1 ? "file" : "files", static_cast<double>(checkpoint.total_bytes()) / kMb,
             checkpoint.hash());
  if (arguments.tensors) print_tensors(checkpoint);
  const Program program = program_from_checkpoint(checkpoint);
  fmt::print(
      "architecture: {}, {} layers, hidden {}, {} heads of {}, {} for keys and values, vocabulary {}, {} positions\n",
      program.architecture, program.layers, program.hidden, program.heads, program.head_dim, program.kv_heads,
      program.vocab, program.max_positions);
  print_quantisation(folder);
  print_sizes(checkpoint);
  EngineOptions options;
  options.device = arguments.device;
  const std::unique_ptr<Backend> backend = make_backend(options);
  print_fits(checkpoint, program, backend->device().info());
  return 0;
}

const CommandRegistration kRegistration(
    {"inspect", "what is in a model folder, and what each kernel says of it", [](CLI::App& app) {
       auto arguments = std::make_shared<Arguments>();
       app.add_option("folder", arguments->folder,
                      "a Hugging Face folder, or a hub id that is in the Hugging Face cache")
           ->required();
       app.add_option("--revision", arguments->revision, "branch, tag or commit of a hub id")->capture_default_str();
       app.add_option("--device", arguments->device,
                      "whose kernels to ask: auto (a GPU where there is one), cpu, cuda, cuda:N")
           ->capture_default_str();
       app.add_flag("--tensors", arguments->tensors, "list every tensor");
       return [arguments] { return run(*arguments); };
     }});

}  // namespace
}  // namespace nibble
