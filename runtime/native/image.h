// Reading pictures.
#ifndef TLC_NATIVE_IMAGE_H_
#define TLC_NATIVE_IMAGE_H_

#include <cstdint>
#include <string>
#include <vector>

namespace tlc {

struct Image {
  int width = 0;
  int height = 0;
  int channels = 0;             // 1 (gray) or 3 (RGB)
  std::vector<uint8_t> pixels;  // rows from the top, channels last
};

// Decode a JPEG or PNG file to gray or RGB, as Pillow's convert("RGB") or convert("L") would give it: `channels` says
// which. Throws Error for other formats, broken files, and more than 178,956,970 pixels (Pillow's own limit).
Image read_image(const std::string& bytes, int channels);

}  // namespace tlc

#endif  // TLC_NATIVE_IMAGE_H_
