#include "preprocess.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <utility>

#include "error.h"

namespace tlc {

namespace {

constexpr char kPackAgain[] = "Pack the bundle again; its manifest is not what tlc writes.";
constexpr int64_t kLongestSide = 1 << 16;

[[noreturn]] void refuse(const std::string& message) { throw Error("fed: " + message, kPackAgain); }

int side(const Json& value, const std::string& name) {
  const int64_t pixels = value.integer();
  if (pixels < 1 || pixels > kLongestSide) {
    refuse(name + " must be from 1 to " + std::to_string(kLongestSide) + " pixels, got " + std::to_string(pixels));
  }
  return static_cast<int>(pixels);
}

// Return the two sides (H, W).
std::pair<int, int> sides(const Json& value, const std::string& name) {
  const std::vector<Json>& pair = value.array();
  if (pair.size() != 2) refuse(name + " must be [height, width], got " + std::to_string(pair.size()) + " numbers");
  return {side(pair[0], name), side(pair[1], name)};
}

template <typename Choice>
Choice choice(const Json& value, const std::string& name, const std::vector<std::pair<std::string, Choice>>& choices) {
  std::string names;
  for (const auto& [text, meaning] : choices) {
    if (value.string() == text) return meaning;
    names += (names.empty() ? "" : ", ") + text;
  }
  refuse(name + " must be one of " + names + ", got '" + value.string() + "'");
}

std::vector<float> per_channel(const Json& value, const std::string& name, int count) {
  std::vector<float> numbers;
  for (const Json& number : value.array()) numbers.push_back(static_cast<float>(number.number()));
  if (numbers.size() != static_cast<size_t>(count)) {
    refuse(name + " must have " + std::to_string(count) + " numbers, got " + std::to_string(numbers.size()));
  }
  for (const float number : numbers) {
    if (!std::isfinite(number)) refuse(name + " must be finite");
  }
  return numbers;
}

// Return where the crop of `length` pixels begins in `have`, negative where it begins in the padding before them.
int crop_start(int have, int length) {
  if (have < length) return -((length - have) / 2);
  const int spare = have - length;
  // Half of an odd number goes to the even neighbour, as Python's round().
  return spare / 2 + (spare % 2 == 1 ? (spare / 2) % 2 : 0);
}

}  // namespace

Preprocess parse_preprocess(const Json& record) {
  if (record.at("kind").string() != "image") refuse("kind must be image, got '" + record.at("kind").string() + "'");
  Preprocess out;
  std::tie(out.height, out.width) = sides(record.at("size"), "size");
  if (const Json* resize = record.find("resize")) {
    if (resize->kind() == Json::Kind::kArray) {
      out.resize = Preprocess::Resize::kExact;
      std::tie(out.resize_height, out.resize_width) = sides(*resize, "resize");
    } else {
      out.resize = Preprocess::Resize::kShortSide;
      out.resize_height = out.resize_width = side(*resize, "resize");
    }
  }
  out.interpolation = choice<Interpolation>(record.at("interpolation"), "interpolation",
                                            {{"nearest", Interpolation::kNearest},
                                             {"bilinear", Interpolation::kBilinear},
                                             {"bicubic", Interpolation::kBicubic},
                                             {"lanczos", Interpolation::kLanczos}});
  out.channels = choice<Channels>(record.at("channels"), "channels",
                                  {{"rgb", Channels::kRgb}, {"bgr", Channels::kBgr}, {"gray", Channels::kGray}});
  out.mean = per_channel(record.at("mean"), "mean", out.channel_count());
  out.std = per_channel(record.at("std"), "std", out.channel_count());
  if (*std::min_element(out.std.begin(), out.std.end()) <= 0) refuse("std must be above 0");
  return out;
}

Image resized(const Preprocess& preprocess, const Image& image) {
  int64_t width = image.width, height = image.height;
  if (preprocess.resize == Preprocess::Resize::kExact) {
    width = preprocess.resize_width;
    height = preprocess.resize_height;
  } else if (preprocess.resize == Preprocess::Resize::kShortSide) {
    const int64_t shorter = std::min(width, height);
    // torchvision's rule: the long side is truncated, not rounded.
    width = preprocess.resize_height * width / shorter;
    height = preprocess.resize_height * height / shorter;
  }
  if (width == image.width && height == image.height) return image;
  constexpr int64_t most = kMaxImagePixels + 1;  // refused by resize(), and an int
  return resize(image, static_cast<int>(std::min(width, most)), static_cast<int>(std::min(height, most)),
                preprocess.interpolation);
}

Tensor preprocessed(const Preprocess& preprocess, const Image& image) {
  const int count = preprocess.channel_count();
  const Image source = resized(preprocess, with_channels(image, count));
  Tensor out = make_tensor(DType::kFloat32, {1, count, preprocess.height, preprocess.width});
  const int top = crop_start(source.height, preprocess.height);
  const int left = crop_start(source.width, preprocess.width);
  float* target = out.data<float>();
  for (int c = 0; c < count; ++c) {
    const auto at = static_cast<size_t>(c);
    // Three roundings to float32, in numpy's order.
    const float scale = 1 / (preprocess.std[at] * 255);
    const float shift = preprocess.mean[at] / preprocess.std[at];
    float values[256];
    for (int value = 0; value < 256; ++value) {
      values[value] = static_cast<float>(value) * scale;
      values[value] -= shift;
    }
    const int stored = preprocess.channels == Channels::kBgr ? count - 1 - c : c;
    for (int y = top; y < top + preprocess.height; ++y) {
      const bool outside = y < 0 || y >= source.height;
      const ptrdiff_t row = static_cast<ptrdiff_t>(y) * source.width;
      for (int x = left; x < left + preprocess.width; ++x) {
        // Padding is black, which is not 0 once normalised.
        const bool padding = outside || x < 0 || x >= source.width;
        *target++ = values[padding ? 0 : source.pixels[static_cast<size_t>((row + x) * count + stored)]];
      }
    }
  }
  return out;
}

Tensor preprocessed_pixels(const Preprocess& preprocess, const uint8_t* pixels, int height, int width, int channels) {
  Image image;
  image.width = width;
  image.height = height;
  image.channels = channels;
  image.pixels.assign(pixels, pixels + static_cast<size_t>(height) * static_cast<size_t>(width) * channels);
  return preprocessed(preprocess, image);
}

}  // namespace tlc
