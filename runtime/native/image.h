// Reading pictures.
#ifndef TLC_NATIVE_IMAGE_H_
#define TLC_NATIVE_IMAGE_H_

#include <cstdint>
#include <string>
#include <vector>

namespace tlc {

// A larger picture is taken for a decompression bomb, as MAX_IMAGE_PIXELS of calibration/images.py does.
constexpr int64_t kMaxImagePixels = 90000000;

struct Image {
  int width = 0;
  int height = 0;
  int channels = 0;             // 1 (gray) or 3 (RGB)
  std::vector<uint8_t> pixels;  // rows from the top, channels last
};

// Decode a JPEG or PNG file to gray or RGB, as Pillow's convert("RGB") or convert("L") gives it: `channels` says which.
// Alpha is dropped and EXIF is not applied. Throws Error for other formats, broken files, and more than
// kMaxImagePixels.
Image read_image(const std::string& bytes, int channels);

// Return the picture with 1 or 3 channels: luma by ITU-R 601-2, or gray three times.
Image with_channels(Image image, int channels);

}  // namespace tlc

#endif  // TLC_NATIVE_IMAGE_H_
