// Image -> model input, as calibration/preprocess.py: resize, centre crop, scale to [0, 1], normalise, channel order.
#ifndef TLC_NATIVE_PREPROCESS_H_
#define TLC_NATIVE_PREPROCESS_H_

#include <cstdint>
#include <vector>

#include "image.h"
#include "json.h"
#include "resize.h"
#include "tensor.h"

namespace tlc {

enum class Channels { kRgb, kBgr, kGray };

struct Preprocess {
  int height = 0;  // of the model's input
  int width = 0;
  enum class Resize { kNone, kShortSide, kExact } resize = Resize::kNone;
  int resize_height = 0;  // of kExact; kShortSide: the short side
  int resize_width = 0;
  Interpolation interpolation = Interpolation::kBilinear;
  std::vector<float> mean;  // per channel in the model's order, of values in [0, 1]
  std::vector<float> std;
  Channels channels = Channels::kRgb;

  int channel_count() const { return channels == Channels::kGray ? 1 : 3; }
};

// Parse the manifest's record of kind "image"; throws Error.
Preprocess parse_preprocess(const Json& record);

// Return `image` resized, not cropped: bit for bit what Pillow's resize gives. Throws Error for a size out of bounds.
Image resized(const Preprocess& preprocess, const Image& image);

// Return the model input of one image, (1, C, H, W) float32; throws as resized(). Gray and RGB become each other where
// the model takes the other.
Tensor preprocessed(const Preprocess& preprocess, const Image& image);

// Return the model input of pixels as they lie in an .npz, (H, W, C) uint8, C = 1 or 3: as preprocessed().
Tensor preprocessed_pixels(const Preprocess& preprocess, const uint8_t* pixels, int height, int width, int channels);

}  // namespace tlc

#endif  // TLC_NATIVE_PREPROCESS_H_
