#include "cli/image_batch.h"

#include "core/error.h"
#include "inputs/image.h"

namespace nibble {

ImageBatch read_image_batch(std::span<const std::string> files, const ImageProcessor& processor, std::int64_t channels,
                            std::vector<float>& pixels) {
  pixels.clear();
  ImageBatch batch{static_cast<std::int64_t>(files.size()), channels, 0, 0, {}};
  for (std::size_t i = 0; i < files.size(); ++i) {
    const Pixels image = processor.process(read_image(files[i]));
    if (i > 0 && (image.height != batch.height || image.width != batch.width)) {
      fail("{} becomes {} x {} pixels, and the images before it {} x {}: use --batch-size 1", files[i], image.width,
           image.height, batch.width, batch.height);
    }
    batch.height = image.height;
    batch.width = image.width;
    pixels.insert(pixels.end(), image.values.begin(), image.values.end());
  }
  batch.pixels = pixels;
  return batch;
}

}  // namespace nibble
