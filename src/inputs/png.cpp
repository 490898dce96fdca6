#include "core/error.h"
#include "inputs/decoders.h"

#include <png.h>

#include <array>
#include <csetjmp>
#include <cstring>
#include <vector>

namespace nibble {
namespace {

// Colour profiles and comments, the largest of which have some 100 KB, are of no use here.
constexpr png_alloc_size_t kMaxChunk = 8U << 20;

class PngDecoder {
 public:
  PngDecoder(std::span<const std::byte> file, std::string_view where) : where_(where), file_(file) {}
  ~PngDecoder() { png_destroy_read_struct(&png_, &info_, nullptr); }
  PngDecoder(const PngDecoder&) = delete;
  PngDecoder& operator=(const PngDecoder&) = delete;

  Image decode() {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, on_error, [](png_structp, png_const_charp) {});
    if (png_ != nullptr) info_ = png_create_info_struct(png_);
    if (info_ == nullptr) fail("{}: libpng could not be started", where_);
    run(&PngDecoder::open);
    Image image = sized_image(png_get_image_width(png_, info_), png_get_image_height(png_, info_), where_);
    const auto width = static_cast<std::size_t>(image.width);
    pixels_.resize(width * static_cast<std::size_t>(image.height) * 4);
    rows_.resize(static_cast<std::size_t>(image.height));
    for (std::size_t y = 0; y < rows_.size(); ++y) rows_[y] = &pixels_[y * width * 4];
    run(&PngDecoder::read);
    for (std::size_t i = 0; i < image.rgb.size(); ++i) {
      const unsigned char* pixel = &pixels_[i / 3 * 4];
      image.rgb[i] = over_white(pixel[i % 3], pixel[3]);
    }
    return image;
  }

 private:
  static void on_error(png_structp png, png_const_charp text) {
    auto& self = *static_cast<PngDecoder*>(png_get_error_ptr(png));
    std::strncpy(self.message_.data(), text, self.message_.size() - 1);
    std::longjmp(self.jump_, 1);
  }

  static void on_read(png_structp png, png_bytep to, std::size_t size) {
    auto& self = *static_cast<PngDecoder*>(png_get_io_ptr(png));
    if (size > self.file_.size() - self.at_) png_error(png, "it ends too early");
    std::memcpy(to, self.file_.data() + self.at_, size);
    self.at_ += size;
  }

  static std::uint8_t over_white(int value, int alpha) {
    return static_cast<std::uint8_t>((value * alpha + 255 * (255 - alpha) + 127) / 255);
  }

  // Throws where a step was left by a jump.
  void run(void (PngDecoder::*step)()) {
    if (!finishes(step)) fail("{}: the PNG image cannot be read: {}", where_, message_.data());
  }
  bool finishes(void (PngDecoder::*step)()) {
    if (setjmp(jump_) != 0) return false;
    (this->*step)();
    return true;
  }

  void open() {
    png_set_read_fn(png_, this, on_read);
    png_set_user_limits(png_, static_cast<png_uint_32>(kMaxImageSide), static_cast<png_uint_32>(kMaxImageSide));
    png_set_chunk_malloc_max(png_, kMaxChunk);
    png_read_info(png_, info_);
  }

  // Whatever the file holds comes as 8-bit RGBA.
  void read() {
    png_set_expand(png_);  // palettes, 1 to 4 bits of grey, transparent colours
    png_set_strip_16(png_);
    png_set_gray_to_rgb(png_);
    png_set_add_alpha(png_, 255, PNG_FILLER_AFTER);
    png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    if (png_get_rowbytes(png_, info_) != std::size_t{png_get_image_width(png_, info_)} * 4)
      png_error(png_, "its kind of pixels is not known");
    png_read_image(png_, rows_.data());
    png_read_end(png_, nullptr);
  }

  std::string_view where_;
  std::span<const std::byte> file_;
  std::size_t at_ = 0;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  std::jmp_buf jump_ = {};
  std::array<char, 200> message_ = {};
  std::vector<unsigned char> pixels_;
  std::vector<png_bytep> rows_;
};

}  // namespace

Image decode_png(std::span<const std::byte> file, std::string_view where) { return PngDecoder(file, where).decode(); }

}  // namespace nibble
