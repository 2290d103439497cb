#include "image.h"

#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstring>

#include "error.h"

#ifdef TLC_WITH_JPEG
#include <jpeglib.h>
// After jpeglib.h, which needs <cstdio> and declares what this one uses.
#include <jerror.h>
#endif
#ifdef TLC_WITH_PNG
#include <png.h>
#endif

namespace tlc {

namespace {

constexpr char kRepair[] = "Replace the picture, or save it again as PNG.";

[[maybe_unused]] Error broken(const char* format, const std::string& reason) {
  return Error(std::string("not a whole ") + format + " picture: " + reason, kRepair);
}

// Return an image whose pixels are to be filled; throws Error for one that is too large.
[[maybe_unused]] Image blank(const char* format, int64_t width, int64_t height, int channels) {
  if (width < 1 || height < 1 || width > kMaxImagePixels || height > kMaxImagePixels / width) {
    throw Error(std::string("a ") + format + " picture of " + std::to_string(width) + " x " + std::to_string(height) +
                    " pixels; the limit is " + std::to_string(kMaxImagePixels),
                "Scale it down.");
  }
  Image image;
  image.width = static_cast<int>(width);
  image.height = static_cast<int>(height);
  image.channels = channels;
  image.pixels.resize(static_cast<size_t>(width * height) * static_cast<size_t>(channels));
  return image;
}

// The two libraries report errors by a function that must not return. Both structs below hold the place to go back to;
// `guarded` runs a step that may end there. A step owns nothing, so no destructor is skipped. Returns whether it
// reached its end.
template <typename Reader, typename Step>
bool guarded(Reader& reader, const Step& step) {
  if (setjmp(reader.escape) != 0) return false;
  step();
  return true;
}

#ifdef TLC_WITH_JPEG

// A picture of so many scans is made to waste time; real progressive ones have about ten.
constexpr int kMaxScans = 500;

struct JpegReader {
  jpeg_decompress_struct jpeg{};
  jpeg_error_mgr errors{};
  jpeg_source_mgr source{};
  jpeg_progress_mgr progress{};
  std::jmp_buf escape{};
  char message[JMSG_LENGTH_MAX] = "";

  JpegReader() = default;
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;
  ~JpegReader() { jpeg_destroy_decompress(&jpeg); }
};

[[noreturn]] void give_up(JpegReader* reader, const char* message) {
  std::snprintf(reader->message, sizeof reader->message, "%s", message);
  std::longjmp(reader->escape, 1);
}

JpegReader* reader_of(j_decompress_ptr jpeg) { return static_cast<JpegReader*>(jpeg->client_data); }

[[noreturn]] void on_jpeg_error(j_common_ptr jpeg) {
  auto* reader = static_cast<JpegReader*>(jpeg->client_data);
  reader->errors.format_message(jpeg, reader->message);
  std::longjmp(reader->escape, 1);
}

void on_jpeg_progress(j_common_ptr jpeg) {
  auto* reader = static_cast<JpegReader*>(jpeg->client_data);
  if (reader->jpeg.input_scan_number > kMaxScans) give_up(reader, "it has more than 500 scans");
}

boolean on_jpeg_end(j_decompress_ptr jpeg) { give_up(reader_of(jpeg), "the file is cut short"); }

void skip_jpeg(j_decompress_ptr jpeg, long bytes) {  // NOLINT(google-runtime-int): the library's type
  if (bytes <= 0) return;
  const auto count = static_cast<size_t>(bytes);
  if (count > jpeg->src->bytes_in_buffer) give_up(reader_of(jpeg), "the file is cut short");
  jpeg->src->next_input_byte += count;
  jpeg->src->bytes_in_buffer -= count;
}

void open_jpeg(JpegReader& reader, const std::string& bytes) {
  jpeg_decompress_struct& jpeg = reader.jpeg;
  jpeg.err = jpeg_std_error(&reader.errors);
  reader.errors.error_exit = on_jpeg_error;
  reader.errors.output_message = [](j_common_ptr) {};  // warnings: Pillow is silent too
  jpeg.client_data = &reader;
  jpeg_create_decompress(&jpeg);
  reader.progress.progress_monitor = on_jpeg_progress;
  jpeg.progress = &reader.progress;
  reader.source.next_input_byte = reinterpret_cast<const JOCTET*>(bytes.data());
  reader.source.bytes_in_buffer = bytes.size();
  reader.source.init_source = [](j_decompress_ptr) {};
  reader.source.fill_input_buffer = on_jpeg_end;
  reader.source.skip_input_data = skip_jpeg;
  reader.source.resync_to_restart = jpeg_resync_to_restart;
  reader.source.term_source = [](j_decompress_ptr) {};
  jpeg.src = &reader.source;
  jpeg_read_header(&jpeg, TRUE);
}

// Turn a row of CMYK, inverted as Adobe's programs write it and Pillow takes every such file to be, into RGB.
void rgb_from_cmyk(const uint8_t* cmyk, uint8_t* rgb, int width) {
  for (int x = 0; x < width; ++x, cmyk += 4, rgb += 3) {
    const int light = cmyk[3];
    for (int c = 0; c < 3; ++c) {
      const int product = (255 - cmyk[c]) * light + 128;  // product / 255, rounded, by Pillow's shifts
      const int value = light - (((product >> 8) + product) >> 8);
      rgb[c] = static_cast<uint8_t>(value < 0 ? 0 : value);
    }
  }
}

Image read_jpeg(const std::string& bytes) {
  JpegReader reader;
  jpeg_decompress_struct& jpeg = reader.jpeg;
  if (!guarded(reader, [&] { open_jpeg(reader, bytes); })) throw broken("JPEG", reader.message);
  const int layers = jpeg.num_components;
  if (jpeg.data_precision != 8 || (layers != 1 && layers != 3 && layers != 4)) {
    throw Error("a JPEG picture of " + std::to_string(layers) + " layers of " + std::to_string(jpeg.data_precision) +
                    " bits; 1, 3 or 4 layers of 8 bits can be read",
                kRepair);
  }
  Image image = blank("JPEG", jpeg.image_width, jpeg.image_height, layers == 1 ? 1 : 3);
  std::vector<uint8_t> cmyk(layers == 4 ? static_cast<size_t>(image.width) * 4 : 0);
  jpeg.out_color_space = layers == 1 ? JCS_GRAYSCALE : layers == 3 ? JCS_RGB : JCS_CMYK;
  const size_t row_bytes = static_cast<size_t>(image.width) * static_cast<size_t>(image.channels);
  const bool whole = guarded(reader, [&] {
    jpeg_start_decompress(&jpeg);
    while (jpeg.output_scanline < jpeg.output_height) {
      uint8_t* row = image.pixels.data() + jpeg.output_scanline * row_bytes;
      JSAMPROW target = layers == 4 ? cmyk.data() : row;
      jpeg_read_scanlines(&jpeg, &target, 1);
      if (layers == 4) rgb_from_cmyk(cmyk.data(), row, image.width);
    }
  });
  if (!whole) throw broken("JPEG", reader.message);
  return image;
}

#else

Image read_jpeg(const std::string&) {
  throw Error("this tlc-run was built without libjpeg and cannot read JPEG pictures",
              "Build it with libjpeg-turbo's headers (Debian: libjpeg-dev), or give PNG pictures or an .npz.");
}

#endif

#ifdef TLC_WITH_PNG

struct PngReader {
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::jmp_buf escape{};
  char message[160] = "";
  const char* next = nullptr;
  size_t left_bytes = 0;

  PngReader() = default;
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;
  ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }
};

[[noreturn]] void on_png_error(png_structp png, png_const_charp message) {
  auto* reader = static_cast<PngReader*>(png_get_error_ptr(png));
  std::snprintf(reader->message, sizeof reader->message, "%s", message);
  std::longjmp(reader->escape, 1);
}

void on_png_warning(png_structp, png_const_charp) {}

void take_png(png_structp png, png_bytep target, size_t count) {
  auto* reader = static_cast<PngReader*>(png_get_io_ptr(png));
  if (count > reader->left_bytes) png_error(png, "the file is cut short");
  std::memcpy(target, reader->next, count);
  reader->next += count;
  reader->left_bytes -= count;
}

void open_png(PngReader& reader) {
  reader.info = png_create_info_struct(reader.png);
  png_set_read_fn(reader.png, &reader, take_png);
  png_set_user_limits(reader.png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // the limit here is on their product
  png_read_info(reader.png, reader.info);
}

// Give the gray or RGB values of each pixel of `row` to `target`; 16 bits become 8 as Pillow does it.
void unpack_png(const uint8_t* row, uint8_t* target, int width, int type, int depth, const png_color* palette) {
  const int step = depth == 16 ? 2 : 1;
  const int samples = type == PNG_COLOR_TYPE_RGB          ? 3
                      : type == PNG_COLOR_TYPE_RGB_ALPHA  ? 4
                      : type == PNG_COLOR_TYPE_GRAY_ALPHA ? 2
                                                          : 1;
  for (int x = 0; x < width; ++x, row += samples * step) {
    if (type == PNG_COLOR_TYPE_PALETTE) {
      *target++ = palette[row[0]].red;
      *target++ = palette[row[0]].green;
      *target++ = palette[row[0]].blue;
    } else if (samples >= 3) {
      for (int c = 0; c < 3; ++c) *target++ = row[c * step];
    } else if (type == PNG_COLOR_TYPE_GRAY && depth == 16) {
      *target++ = row[0] != 0 ? 255 : row[1];  // Pillow clips values above 255 rather than scaling them
    } else {
      *target++ = static_cast<uint8_t>(depth < 8 ? row[0] * 255 / ((1 << depth) - 1) : row[0]);
    }
  }
}

Image read_png(const std::string& bytes) {
  PngReader reader;
  reader.next = bytes.data();
  reader.left_bytes = bytes.size();
  const bool opened = guarded(reader, [&] {
    reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &reader, on_png_error, on_png_warning);
    if (reader.png != nullptr) open_png(reader);
  });
  if (reader.png == nullptr) {
    throw Error("libpng does not start: this program was built for version " PNG_LIBPNG_VER_STRING,
                "Build it with the headers of the library that is here.");
  }
  if (!opened) throw broken("PNG", reader.message);
  const int type = png_get_color_type(reader.png, reader.info);
  const int depth = png_get_bit_depth(reader.png, reader.info);
  const bool gray = type == PNG_COLOR_TYPE_GRAY || type == PNG_COLOR_TYPE_GRAY_ALPHA;
  Image image = blank("PNG", png_get_image_width(reader.png, reader.info),
                      png_get_image_height(reader.png, reader.info), gray ? 1 : 3);

  png_color palette[256] = {};  // black where the file has fewer colours
  const bool ready = guarded(reader, [&] {
    png_colorp colours = nullptr;
    int count = 0;
    png_get_PLTE(reader.png, reader.info, &colours, &count);
    if (type == PNG_COLOR_TYPE_PALETTE) std::memcpy(palette, colours, static_cast<size_t>(count) * sizeof palette[0]);
    png_set_packing(reader.png);
    png_set_interlace_handling(reader.png);
    png_read_update_info(reader.png, reader.info);
  });
  if (!ready) throw broken("PNG", reader.message);

  const size_t row_bytes = png_get_rowbytes(reader.png, reader.info);
  std::vector<uint8_t> stored(row_bytes * static_cast<size_t>(image.height));
  std::vector<png_bytep> rows(static_cast<size_t>(image.height));
  for (size_t y = 0; y < rows.size(); ++y) rows[y] = stored.data() + y * row_bytes;
  if (!guarded(reader, [&] { png_read_image(reader.png, rows.data()); })) throw broken("PNG", reader.message);
  for (size_t y = 0; y < rows.size(); ++y) {
    uint8_t* target = image.pixels.data() + y * static_cast<size_t>(image.width) * static_cast<size_t>(image.channels);
    unpack_png(rows[y], target, image.width, type, depth, palette);
  }
  return image;
}

#else

Image read_png(const std::string&) {
  throw Error("this tlc-run was built without libpng and cannot read PNG pictures",
              "Build it with libpng's headers (Debian: libpng-dev), or give JPEG pictures or an .npz.");
}

#endif

bool begins(const std::string& bytes, const std::string& magic) { return bytes.compare(0, magic.size(), magic) == 0; }

}  // namespace

Image with_channels(Image image, int channels) {
  if (image.channels == channels) return image;
  Image out;
  out.width = image.width;
  out.height = image.height;
  out.channels = channels;
  const size_t count = static_cast<size_t>(image.width) * static_cast<size_t>(image.height);
  out.pixels.resize(count * static_cast<size_t>(channels));
  for (size_t i = 0; i < count; ++i) {
    if (channels == 3) {
      std::memset(out.pixels.data() + 3 * i, image.pixels[i], 3);
    } else {
      // 0.299, 0.587, 0.114 of 65536, rounded; then to the nearest.
      const uint8_t* rgb = image.pixels.data() + 3 * i;
      out.pixels[i] = static_cast<uint8_t>((rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 32768) >> 16);
    }
  }
  return out;
}

Image read_image(const std::string& bytes, int channels) {
  if (begins(bytes, "\xFF\xD8\xFF")) return with_channels(read_jpeg(bytes), channels);
  if (begins(bytes, "\x89PNG\r\n\x1A\n")) return with_channels(read_png(bytes), channels);
  throw Error(bytes.empty() ? "an empty file, not a picture" : "neither a JPEG nor a PNG picture",
              "Convert it to one of these.");
}

}  // namespace tlc
