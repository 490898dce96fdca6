// nibble synth OUT: a model folder with random weights, for measuring and testing without downloads.
#include "quant/synth.h"
#include "cli/command.h"
#include "core/error.h"
#include "core/file.h"
#include "formats/json.h"

#include <fmt/core.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <memory>

namespace nibble {
namespace {

struct Arguments {
  std::string out;
  std::string config;
  std::string preset;
  std::string dtype = "f16";
  std::string format = "gptq";
  std::int64_t layers = 0;
  bool gptq = false;
  LinearQuant quant;
  SynthOptions options;
};

int run(Arguments arguments) {
  if (arguments.config.empty() == arguments.preset.empty()) {
    fail_usage("give either --config config.json or --preset NAME ({})", fmt::join(preset_names(), ", "));
  }
  nlohmann::ordered_json config =
      arguments.preset.empty() ? parse_ordered_json(read_text_file(arguments.config, kJsonSizeLimit), arguments.config)
                               : preset_config(arguments.preset);
  if (arguments.layers > 0)
    config[config.contains("encoder_layers") ? "encoder_layers" : "num_hidden_layers"] = arguments.layers;
  const auto dtype = dtype_from_name(arguments.dtype);
  if (!dtype) fail_usage("--dtype {}: expected f16, bf16 or f32", arguments.dtype);
  arguments.options.dtype = *dtype;
  arguments.options.zeros = arguments.format == "gptq_v2" ? ZeroFormat::v2 : ZeroFormat::v1;
  if (arguments.gptq) arguments.options.gptq = arguments.quant;
  const SynthReport report = synthesise(config, arguments.out, arguments.options);
  fmt::print("{}: {} tensors, {:.2f} GB in {} file{}, {:.1f} s\n", arguments.out, report.tensors,
             static_cast<double>(report.bytes) / 1e9, report.files, report.files == 1 ? "" : "s", report.seconds);
  return 0;
}

const CommandRegistration kRegistration(
    {"synth", "make a model folder with random weights", [](CLI::App& app) {
       auto a = std::make_shared<Arguments>();
       app.add_option("out", a->out, "the folder to make")->required();
       app.add_option("--config", a->config, "the config.json of any supported model");
       app.add_option("--preset", a->preset,
                      fmt::format("a published model's config instead: {}", fmt::join(preset_names(), ", ")));
       app.add_option("--layers", a->layers, "this many blocks instead of the config's")->check(CLI::Range(1, 1024));
       app.add_option("--dtype", a->dtype, "type of what is not quantised: f16 (default), bf16 or f32");
       app.add_flag("--gptq", a->gptq, "quantised linear layers, as the following options say");
       app.add_option("--bits", a->quant.bits, "2, 3, 4 (default) or 8")->check(CLI::IsMember({2, 3, 4, 8}));
       app.add_option("--group-size", a->quant.group_size,
                      "input features that share a scale (default 128); -1: all of them");
       app.add_flag("--sym,!--asym", a->quant.sym, "symmetric codes (default), or --asym: a zero point for each group");
       app.add_flag("--act-order,--desc-act", a->quant.desc_act, "groups in a random order of inputs");
       app.add_option("--format", a->format, "gptq (default) or gptq_v2")->check(CLI::IsMember({"gptq", "gptq_v2"}));
       app.add_option("--seed", a->options.seed, "the weights depend on it alone (default 0)");
       app.add_flag("--overwrite", a->options.overwrite, "replace a folder that exists");
       return [a] { return run(*a); };
     }});

}  // namespace
}  // namespace nibble
