// Token ids in, token ids out, several prompts of unequal length together: generate_tokens MODEL
#include <nibble/nibble.h>

#include <cstdio>
#include <exception>

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s MODEL\n", argv[0]);
    return 2;
  }
  try {
    nibble::LoadOptions load;
    load.max_batch = 2;
    load.max_tokens = 64;
    nibble::LanguageModel model(argv[1], load);
    nibble::TextOptions text;
    text.max_new_tokens = 8;
    for (const auto& tokens : model.generate({{1, 2, 3}, {4, 5, 6, 7, 8}}, text)) {
      for (const auto token : tokens) std::printf("%d ", token);
      std::printf("\n");
    }
    std::printf("nibble %s: %zu bytes planned, loaded in %.3f s\n", nibble::version().c_str(), model.planned_bytes(),
                model.load_seconds());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
