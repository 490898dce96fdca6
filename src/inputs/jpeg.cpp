#include "core/error.h"
#include "inputs/decoders.h"
#include "inputs/orientation.h"

#include <array>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

// Needs what <cstdio> declares.
#include <jpeglib.h>
// Needs what jpeglib.h declares.
#include <jerror.h>

namespace nibble {
namespace {

// A progressive image has about ten scans. Each one costs as much time as a whole image, and few bytes.
constexpr int kMostScans = 64;

class JpegDecoder {
 public:
  JpegDecoder(std::span<const std::byte> file, std::string_view where) : where_(where), file_(file) {
    jpeg_.err = jpeg_std_error(&errors_);
    jpeg_.client_data = this;
    errors_.error_exit = [](j_common_ptr jpeg) {
      JpegDecoder& self = of(jpeg);
      jpeg->err->format_message(jpeg, self.message_.data());
      std::longjmp(self.jump_, 1);
    };
    errors_.emit_message = [](j_common_ptr jpeg, int /*level*/) {
      // The library goes on with grey where a file is cut short; other warnings do no harm.
      if (jpeg->err->msg_code == JWRN_JPEG_EOF) jpeg->err->error_exit(jpeg);
    };
    progress_.progress_monitor = [](j_common_ptr jpeg) {
      JpegDecoder& self = of(jpeg);
      if (self.jpeg_.input_scan_number <= kMostScans) return;
      self.say("it has more than 64 scans");
      std::longjmp(self.jump_, 1);
    };
  }
  ~JpegDecoder() { jpeg_destroy_decompress(&jpeg_); }
  JpegDecoder(const JpegDecoder&) = delete;
  JpegDecoder& operator=(const JpegDecoder&) = delete;

  Image decode() {
    run(&JpegDecoder::open);
    Image image = sized_image(jpeg_.image_width, jpeg_.image_height, where_);
    row_.resize(static_cast<std::size_t>(image.width) * 4);
    rgb_ = image.rgb.data();
    const int orientation = stated_orientation();
    run(&JpegDecoder::read);
    return turned(std::move(image), orientation);
  }

 private:
  static constexpr int kExifMarker = JPEG_APP0 + 1;

  static JpegDecoder& of(j_common_ptr jpeg) { return *static_cast<JpegDecoder*>(jpeg->client_data); }

  void say(const char* text) { std::strncpy(message_.data(), text, message_.size() - 1); }

  // Throws where a step was left by a jump.
  void run(void (JpegDecoder::*step)()) {
    if (!finishes(step)) fail("{}: the JPEG image cannot be read: {}", where_, message_.data());
  }
  bool finishes(void (JpegDecoder::*step)()) {
    if (setjmp(jump_) != 0) return false;
    (this->*step)();
    return true;
  }

  void open() {
    jpeg_create_decompress(&jpeg_);
    jpeg_.progress = &progress_;
    jpeg_mem_src(&jpeg_, reinterpret_cast<const unsigned char*>(file_.data()),
                 static_cast<unsigned long>(file_.size()));
    constexpr unsigned kWhole = 0xFFFF;  // of each segment
    jpeg_save_markers(&jpeg_, kExifMarker, kWhole);
    jpeg_read_header(&jpeg_, TRUE);
  }

  // Of the first segment that says anything but "as it is".
  int stated_orientation() const {
    for (const jpeg_marker_struct* marker = jpeg_.marker_list; marker != nullptr; marker = marker->next) {
      if (marker->marker != kExifMarker) continue;
      const int orientation =
          exif_orientation(std::as_bytes(std::span(marker->data, static_cast<std::size_t>(marker->data_length))));
      if (orientation != 1) return orientation;
    }
    return 1;
  }

  void read() {
    const bool cmyk = jpeg_.jpeg_color_space == JCS_CMYK || jpeg_.jpeg_color_space == JCS_YCCK;
    jpeg_.out_color_space = cmyk ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(&jpeg_);
    const std::size_t width = jpeg_.output_width;
    while (jpeg_.output_scanline < jpeg_.output_height) {
      unsigned char* to = rgb_ + jpeg_.output_scanline * width * 3;
      unsigned char* rows[] = {cmyk ? row_.data() : to};
      if (jpeg_read_scanlines(&jpeg_, static_cast<JSAMPARRAY>(rows), 1) != 1) {
        say("a row is missing");
        std::longjmp(jump_, 1);
      }
      if (cmyk) convert_row(to, width);
    }
    jpeg_finish_decompress(&jpeg_);
  }

  // Files of Adobe's programs, which nearly all of this kind are, hold the light that is left instead of the ink.
  void convert_row(unsigned char* to, std::size_t width) const {
    const int flip = jpeg_.saw_Adobe_marker != 0 ? 255 : 0;
    for (std::size_t x = 0; x < width; ++x) {
      const unsigned char* from = &row_[x * 4];
      const int light = 255 - (from[3] ^ flip);
      for (std::size_t c = 0; c < 3; ++c)
        to[x * 3 + c] = static_cast<unsigned char>(light - scaled(from[c] ^ flip, light));
    }
  }

  std::string_view where_;
  std::span<const std::byte> file_;
  jpeg_decompress_struct jpeg_ = {};
  jpeg_error_mgr errors_ = {};
  jpeg_progress_mgr progress_ = {};
  std::jmp_buf jump_ = {};
  std::array<char, JMSG_LENGTH_MAX> message_ = {};
  std::vector<unsigned char> row_;  // of CMYK values
  unsigned char* rgb_ = nullptr;
};

}  // namespace

Image decode_jpeg(std::span<const std::byte> file, std::string_view where) { return JpegDecoder(file, where).decode(); }

}  // namespace nibble
