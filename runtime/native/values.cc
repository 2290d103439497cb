#include "values.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>

#include "error.h"

namespace tlc {

namespace {

constexpr double kSumTolerance = 1e-3;  // of probabilities in float16

// IEEE 754 binary16.
double from_half(uint16_t bits) {
  const double sign = (bits >> 15) != 0 ? -1 : 1;
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  if (exponent == 31) {
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  }
  return exponent == 0 ? sign * std::ldexp(fraction, -24) : sign * std::ldexp(1024 + fraction, exponent - 25);
}

uint16_t to_half(float value) {
  const double magnitude = std::fabs(static_cast<double>(value));
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return sign | 0x7E00;
  if (magnitude >= 65520) return sign | 0x7C00;  // halfway from the largest to the one that would follow
  int exponent = -13;
  if (magnitude >= std::ldexp(1, -14)) std::frexp(magnitude, &exponent);
  // In ulps of the value's binade; below 2^-14, of the subnormals. nearbyint goes to the even of two neighbours, and
  // what it carries into the next binade is right as bits.
  const int ulp = exponent - 11;
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, -ulp)));
  return static_cast<uint16_t>(sign | (steps + (ulp + 24) * 1024));
}

template <typename T>
std::vector<double> converted(const Tensor& tensor) {
  std::vector<double> values(tensor.bytes.size() / sizeof(T));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(tensor.data<T>()[i]);
  return values;
}

}  // namespace

std::vector<double> as_doubles(const Tensor& tensor) {
  switch (tensor.dtype) {
    case DType::kFloat32:
      return converted<float>(tensor);
    case DType::kFloat64:
      return converted<double>(tensor);
    case DType::kInt32:
      return converted<int32_t>(tensor);
    case DType::kInt64:
      return converted<int64_t>(tensor);
    case DType::kInt8:
      return converted<int8_t>(tensor);
    case DType::kUint8:
    case DType::kBool:
      return converted<uint8_t>(tensor);
    case DType::kFloat16: {
      std::vector<double> values;
      for (size_t i = 0; i < tensor.bytes.size() / 2; ++i) values.push_back(from_half(tensor.data<uint16_t>()[i]));
      return values;
    }
  }
  return {};
}

Tensor as_floating(const Tensor& tensor, DType dtype) {
  if (tensor.dtype == dtype) return tensor;
  Tensor out = make_tensor(dtype, tensor.shape);
  const size_t count = tensor.bytes.size() / sizeof(float);
  const bool known = dtype == DType::kFloat16 || dtype == DType::kFloat64;
  if (tensor.dtype != DType::kFloat32 || !known) {
    throw Error(
        std::string("the model takes ") + name_of(dtype) + ", and its preprocessing gives " + name_of(tensor.dtype),
        "Pack a model that takes float32, or give prepared inputs in an .npz.");
  }
  for (size_t i = 0; i < count; ++i) {
    const float value = tensor.data<float>()[i];
    if (dtype == DType::kFloat16) {
      out.data<uint16_t>()[i] = to_half(value);
    } else {
      out.data<double>()[i] = static_cast<double>(value);
    }
  }
  return out;
}

std::vector<double> class_scores(const std::vector<Tensor>& outputs, size_t classes, int64_t batch) {
  const Shape shape = outputs.empty() ? Shape{} : outputs.front().shape;
  const bool rows = shape.size() == 1 || (shape.size() == 2 && shape[0] == batch);
  if (!rows || shape.back() < 2) {
    throw Error("the model's first output is " + (shape.empty() ? std::string("a single number") : shape_text(shape)) +
                    ", not one row of at least 2 classes",
                "Only classifiers are scored here; measure others with tlc-run check and bench.");
  }
  std::vector<double> scores = as_doubles(outputs.front());
  scores.resize(static_cast<size_t>(shape.back()));
  if (classes != 0 && scores.size() != classes) {
    throw Error(
        "the model has " + std::to_string(scores.size()) + " classes, the bundle names " + std::to_string(classes),
        "Pack the bundle again with the classes of its model.");
  }
  for (const double score : scores) {
    if (!std::isfinite(score)) {
      throw Error("the model's output holds NaN or infinity",
                  "Run tlc-run check: it shows whether this device gives other values than were recorded.");
    }
  }
  return scores;
}

size_t best_class(const std::vector<double>& scores) {
  return static_cast<size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

std::vector<double> probabilities(const std::vector<double>& scores) {
  const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
  const bool ready = *std::min_element(scores.begin(), scores.end()) >= 0 && std::fabs(sum - 1) < kSumTolerance;
  if (ready) return scores;
  const double highest = *std::max_element(scores.begin(), scores.end());
  std::vector<double> shares;
  double total = 0;
  for (const double score : scores) {
    shares.push_back(std::exp(score - highest));
    total += shares.back();
  }
  for (double& share : shares) share /= total;
  return shares;
}

double snr_db(const std::vector<double>& reference, const std::vector<double>& candidate) {
  double power = 0, noise = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    power += reference[i] * reference[i];
    noise += (reference[i] - candidate[i]) * (reference[i] - candidate[i]);
  }
  if (noise == 0) return std::numeric_limits<double>::infinity();
  if (!(power > 0) || !std::isfinite(noise)) return -std::numeric_limits<double>::infinity();
  return 10 * std::log10(power / noise);
}

std::string class_name(const std::vector<std::string>& classes, size_t position) {
  return position < classes.size() ? classes[position] : std::to_string(position);
}

}  // namespace tlc
