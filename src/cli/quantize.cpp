// nibble quantize --model MODEL OUT: a full-precision checkpoint becomes a GPTQ folder.
#include "cli/command.h"
#include "core/error.h"
#include "core/log.h"
#include "formats/hub_cache.h"
#include "quant/calibration.h"
#include "quant/quantizer.h"

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <memory>

namespace nibble {
namespace {

struct Arguments {
  std::string model;
  std::string revision = "main";
  std::string out;
  std::string method = "gptq";
  std::string format;
  std::string dataset;
  bool act_order = false;
  bool group_aware = false;
  CalibrationOptions calibration;
  QuantizeOptions options;
};

int run(Arguments arguments) {
  QuantizeOptions& options = arguments.options;
  options.method = arguments.method == "rtn" ? QuantMethod::rtn : QuantMethod::gptq;
  if (!arguments.format.empty()) options.zeros = arguments.format == "gptq_v2" ? ZeroFormat::v2 : ZeroFormat::v1;
  if (arguments.act_order && arguments.group_aware)
    fail_usage("--act-order and --act-group-aware are two orders; give one of them");
  if (arguments.act_order) options.gptq.order = ColumnOrder::activation;
  if (arguments.group_aware) options.gptq.order = ColumnOrder::group_aware;
  if (options.method == QuantMethod::gptq && arguments.dataset.empty()) {
    fail_usage("GPTQ needs text for calibration: name a file with --dataset, or round to nearest with --method rtn");
  }

  const auto folder = resolve_model(arguments.model, arguments.revision);
  const Checkpoint checkpoint(folder);
  std::vector<std::vector<std::int32_t>> sequences;
  if (options.method == QuantMethod::gptq) {
    arguments.calibration.text = arguments.dataset;
    sequences = calibration_windows(Tokenizer::load(folder), arguments.calibration);
  }
  const QuantizeReport report = quantize_checkpoint(checkpoint, sequences, arguments.out, options);

  double loss = 0;
  for (const LinearReport& linear : report.linears) {
    loss += linear.loss;
    log_debug(fmt::format("{}: loss {:.6g}, damping {:.3g}{}", linear.name, linear.loss, linear.damp_percent,
                          linear.fell_back ? ", rounded to nearest" : ""));
  }
  fmt::print("{}: {} linear layers in {} bits, {:.1f} MB (was {:.1f} MB), {:.1f} s", arguments.out,
             report.linears.size(), options.gptq.bits, static_cast<double>(report.bytes_after) / 1e6,
             static_cast<double>(report.bytes_before) / 1e6, report.seconds);
  if (report.tokens > 0) fmt::print(", {} tokens of calibration, loss {:.5g}", report.tokens, loss);
  fmt::print("\n");
  return 0;
}

const CommandRegistration kRegistration(
    {"quantize", "quantise a checkpoint with GPTQ", [](CLI::App& app) {
       auto a = std::make_shared<Arguments>();
       GptqOptions& gptq = a->options.gptq;
       app.add_option("--model,model", a->model, "a model folder, or a hub id in the Hugging Face cache")->required();
       app.add_option("out", a->out, "the folder to make")->required();
       app.add_option("--revision", a->revision, "branch, tag or commit of a hub id (default main)");
       app.add_option("--dataset", a->dataset, "a UTF-8 text file to calibrate with");
       app.add_option("--method", a->method, "gptq (default), or rtn: round to nearest, without calibration")
           ->check(CLI::IsMember({"gptq", "rtn"}));
       app.add_option("--bits", gptq.bits, "2, 3, 4 (default) or 8")->check(CLI::IsMember({2, 3, 4, 8}));
       app.add_option("--group-size", gptq.group_size,
                      "input features that share a scale (default 128); -1: all of them");
       app.add_flag("--sym,!--asym", gptq.symmetric,
                    "symmetric codes (default), or --asym: a zero point for each group");
       app.add_flag("--act-order,--desc-act", a->act_order, "quantise the largest activations first");
       app.add_flag("--act-group-aware", a->group_aware,
                    "the same, without mixing groups: nothing to reorder when it runs");
       app.add_flag("--static-groups", gptq.static_groups,
                    "fix all scales first; with --act-order, groups stay unmixed");
       app.add_option("--damp", gptq.damp_percent,
                      "damping of the Hessian, a share of its mean diagonal (default 0.01)");
       app.add_option("--mse", gptq.mse, "search for the scales of least |error|^MSE, 2.4 say (default 0: none)");
       app.add_flag("--true-sequential,!--no-true-sequential", a->options.true_sequential,
                    "each layer sees the quantised ones before it in its block (default)");
       app.add_flag("--lm-head", a->options.lm_head, "quantise the head too, where it is not tied to the embedding");
       app.add_option("--samples", a->calibration.samples, "calibration sequences (default 32)")
           ->check(CLI::Range(1, 1 << 20));
       app.add_option("--sequence-length", a->calibration.sequence_length, "tokens of each (default 512)")
           ->check(CLI::Range(1, 1 << 20));
       app.add_option("--seed", a->calibration.seed, "chooses the sequences (default 0)");
       app.add_option("--format", a->format,
                      "of zero points: gptq (default; all programs read it) or gptq_v2 (default with --asym)")
           ->check(CLI::IsMember({"gptq", "gptq_v2"}));
       app.add_flag("--keep-dtype", a->options.keep_dtype,
                    "tensors that are not quantised keep their type instead of becoming f16");
       app.add_flag("--overwrite", a->options.overwrite, "replace a folder that exists");
       return [a] { return run(*a); };
     }});

}  // namespace
}  // namespace nibble
