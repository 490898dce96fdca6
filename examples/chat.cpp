// A chat in a dozen lines: nibble_example_chat MODEL [QUESTION]
#include <nibble/nibble.h>

#include <cstdio>
#include <exception>
#include <string>

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s MODEL [QUESTION]\n", argv[0]);
    return 2;
  }
  try {
    nibble::LoadOptions load;
    load.max_tokens = 512;
    nibble::LanguageModel model(argv[1], load);
    nibble::TextOptions text;
    text.max_new_tokens = 128;
    text.on_text = [](std::string_view piece) { std::fwrite(piece.data(), 1, piece.size(), stdout); };
    model.chat({{"user", argc > 2 ? argv[2] : "Why is the sky blue?"}}, text);
    std::printf("\n");
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
