// nibble import-gguf FILE FOLDER: a GGUF file becomes a Hugging Face folder.
#include "cli/command.h"
#include "core/error.h"
#include "formats/gguf_import.h"

#include <CLI/CLI.hpp>

#include <memory>

namespace nibble {
namespace {

struct Arguments {
  std::string file;
  std::string folder;
  std::string dtype = "f16";
  bool overwrite = false;
};

int run(const Arguments& arguments) {
  const auto dtype = dtype_from_name(arguments.dtype);
  if (!dtype) fail_usage("--dtype {}: expected f16 or bf16", arguments.dtype);
  const GgufImportResult result = import_gguf(arguments.file, arguments.folder, {*dtype, arguments.overwrite});
  fmt::print("{}: {} ({}), {} tensors, {:.1f} million parameters, {}{}\n", arguments.folder,
             result.name.empty() ? "a model" : result.name, result.model_type, result.tensors,
             static_cast<double>(result.parameters) / 1e6, name_of(*dtype),
             result.tied ? ", output tied to the embedding" : "");
  return 0;
}

const CommandRegistration kRegistration(
    {"import-gguf", "turn a GGUF file (llama.cpp) into a Hugging Face folder", [](CLI::App& app) {
       auto arguments = std::make_shared<Arguments>();
       app.add_option("file", arguments->file, "the GGUF file")->required();
       app.add_option("folder", arguments->folder, "the folder to make")->required();
       app.add_option("--dtype", arguments->dtype,
                      "type of the weights written: f16 (default, keeps most) or bf16 (for values above 65504)");
       app.add_flag("--overwrite", arguments->overwrite, "write into a folder that has files already");
       return [arguments] { return run(*arguments); };
     }});

}  // namespace
}  // namespace nibble
