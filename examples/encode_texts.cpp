// How alike texts are: encode_texts MODEL TEXT TEXT... prints the cosine of each text's embedding to the first one's.
#include <nibble/nibble.h>

#include <cstdio>
#include <exception>
#include <numeric>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s MODEL TEXT TEXT...\n", argv[0]);
    return 2;
  }
  try {
    const std::vector<std::string> texts(argv + 2, argv + argc);
    nibble::TextEncoderOptions options;
    options.normalize = true;
    nibble::TextEncoder encoder(argv[1], options);
    const std::vector<std::vector<float>> embeddings = encoder.encode(texts);
    for (std::size_t i = 1; i < texts.size(); ++i) {
      const float cosine = std::inner_product(embeddings[i].begin(), embeddings[i].end(), embeddings[0].begin(), 0.0F);
      std::printf("%.4f  %s\n", static_cast<double>(cosine), texts[i].c_str());
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
