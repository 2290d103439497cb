// The method is that of Pillow 13 (src/libImaging/Resample.c): a filter that widens where the picture shrinks, in two
// passes, each rounded to 8 bits, with weights in fixed point. Every rounding below is there to give its bits.
#include "resize.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "error.h"

namespace tlc {

namespace {

// Weights may be negative and exceed 1: two bits more than the eight of a value are left of the 32.
constexpr int kFractionBits = 32 - 8 - 2;
constexpr double kPi = 3.14159265358979323846;

double triangle(double x) {
  x = std::fabs(x);
  return x < 1 ? 1 - x : 0;
}

// Keys, "Cubic convolution interpolation" (1981), with a = -0.5.
double cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

double sinc(double x) {
  if (x == 0) return 1;
  x *= kPi;
  return std::sin(x) / x;
}

double lanczos3(double x) { return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0; }

struct Filter {
  double (*weight)(double x);
  double support;  // pixels to either side, where the picture is not made smaller
};

Filter filter_of(Interpolation interpolation) {
  switch (interpolation) {
    case Interpolation::kBicubic:
      return {cubic, 2};
    case Interpolation::kLanczos:
      return {lanczos3, 3};
    default:
      return {triangle, 1};
  }
}

// The pixels that one pixel of the result is made of.
struct Window {
  int first;
  std::vector<int32_t> weights;  // of 2^kFractionBits
};

std::vector<Window> windows(int from, int to, const Filter& filter) {
  const double scale = static_cast<double>(from) / to;
  const double widened = std::max(scale, 1.0);
  const double support = filter.support * widened;
  const double inverse = 1.0 / widened;
  std::vector<Window> all(static_cast<size_t>(to));
  std::vector<double> weights;
  for (int i = 0; i < to; ++i) {
    const double center = (i + 0.5) * scale;
    Window& window = all[static_cast<size_t>(i)];
    window.first = std::max(0, static_cast<int>(center - support + 0.5));
    const int end = std::min(from, static_cast<int>(center + support + 0.5));
    weights.clear();
    double sum = 0;
    for (int x = window.first; x < end; ++x) {
      weights.push_back(filter.weight((x - center + 0.5) * inverse));
      sum += weights.back();
    }
    for (double weight : weights) {
      if (sum != 0) weight /= sum;
      const double fixed = weight * (1 << kFractionBits);
      window.weights.push_back(static_cast<int32_t>(weight < 0 ? fixed - 0.5 : fixed + 0.5));
    }
  }
  return all;
}

uint8_t to_byte(int32_t sum) {
  const int32_t value = sum >> kFractionBits;
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

Image blank(int width, int height, int channels) {
  Image image;
  image.width = width;
  image.height = height;
  image.channels = channels;
  image.pixels.resize(static_cast<size_t>(width) * static_cast<size_t>(height) * static_cast<size_t>(channels));
  return image;
}

template <int kChannels>
Image narrowed(const Image& image, int width, const Filter& filter) {
  const std::vector<Window> all = windows(image.width, width, filter);
  Image out = blank(width, image.height, kChannels);
  uint8_t* target = out.pixels.data();
  for (int y = 0; y < image.height; ++y) {
    const uint8_t* row = image.pixels.data() + static_cast<size_t>(y) * static_cast<size_t>(image.width) * kChannels;
    for (const Window& window : all) {
      int32_t sums[kChannels];
      std::fill_n(sums, kChannels, 1 << (kFractionBits - 1));
      const uint8_t* source = row + static_cast<ptrdiff_t>(window.first) * kChannels;
      for (const int32_t weight : window.weights) {
        for (int c = 0; c < kChannels; ++c) sums[c] += *source++ * weight;
      }
      for (int c = 0; c < kChannels; ++c) *target++ = to_byte(sums[c]);
    }
  }
  return out;
}

Image shortened(const Image& image, int height, const Filter& filter) {
  const std::vector<Window> all = windows(image.height, height, filter);
  Image out = blank(image.width, height, image.channels);
  const size_t row_bytes = static_cast<size_t>(image.width) * static_cast<size_t>(image.channels);
  std::vector<int32_t> sums(row_bytes);
  uint8_t* target = out.pixels.data();
  for (const Window& window : all) {
    std::fill(sums.begin(), sums.end(), 1 << (kFractionBits - 1));
    const uint8_t* row = image.pixels.data() + static_cast<size_t>(window.first) * row_bytes;
    for (const int32_t weight : window.weights) {
      for (size_t i = 0; i < row_bytes; ++i) sums[i] += row[i] * weight;
      row += row_bytes;
    }
    for (size_t i = 0; i < row_bytes; ++i) *target++ = to_byte(sums[i]);
  }
  return out;
}

// Return the source of each of `to` pixels. The position is added up, not multiplied, as Pillow's affine transform.
std::vector<size_t> nearest(int from, int to) {
  const double scale = static_cast<double>(from) / to;
  double position = scale * 0.5;
  std::vector<size_t> sources;
  for (int i = 0; i < to; ++i, position += scale) {
    sources.push_back(static_cast<size_t>(std::min(from - 1, static_cast<int>(position))));
  }
  return sources;
}

Image picked(const Image& image, int width, int height) {
  const std::vector<size_t> columns = nearest(image.width, width);
  const auto channels = static_cast<size_t>(image.channels);
  Image out = blank(width, height, image.channels);
  uint8_t* target = out.pixels.data();
  for (const size_t y : nearest(image.height, height)) {
    const uint8_t* row = image.pixels.data() + y * static_cast<size_t>(image.width) * channels;
    for (const size_t x : columns) target = std::copy_n(row + x * channels, channels, target);
  }
  return out;
}

}  // namespace

Image resize(const Image& image, int width, int height, Interpolation interpolation) {
  if (width > kMaxImagePixels / height) {
    throw Error("a picture of " + std::to_string(image.width) + " x " + std::to_string(image.height) +
                    " pixels would be resized to " + std::to_string(width) + " x " + std::to_string(height) +
                    "; the limit is " + std::to_string(kMaxImagePixels) + " pixels",
                "Crop the picture: it is far longer than wide.");
  }
  if (interpolation == Interpolation::kNearest) return picked(image, width, height);
  const Filter filter = filter_of(interpolation);
  const auto across = [&](const Image& source) {
    if (width == source.width) return source;
    return source.channels == 1 ? narrowed<1>(source, width, filter) : narrowed<3>(source, width, filter);
  };
  const auto down = [&](const Image& source) {
    return height == source.height ? source : shortened(source, height, filter);
  };
  // Pillow 13's rule: the vertical pass comes first where it takes away more than twice as many rows as the other
  // columns.
  const bool down_first = height < image.height && image.height - height > 2 * (image.width - width);
  return down_first ? across(down(image)) : down(across(image));
}

}  // namespace tlc
