// Pillow's resizing of 8-bit pictures.
#ifndef TLC_NATIVE_RESIZE_H_
#define TLC_NATIVE_RESIZE_H_

#include "image.h"

namespace tlc {

enum class Interpolation { kNearest, kBilinear, kBicubic, kLanczos };

// Return the picture in another size, bit for bit what Pillow's resize gives. Throws Error for more than
// kMaxImagePixels.
Image resize(const Image& image, int width, int height, Interpolation interpolation);

}  // namespace tlc

#endif  // TLC_NATIVE_RESIZE_H_
