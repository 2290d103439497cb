#include "input.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <set>

#include "error.h"
#include "npy.h"
#include "zip.h"

namespace tlc {

namespace {

constexpr char kHowToWrite[] = "Write it with numpy.savez(path, **{\"0/NAME\": array, \"1/NAME\": array, ...}).";

bool is_float(DType dtype) { return dtype == DType::kFloat32 || dtype == DType::kFloat16 || dtype == DType::kFloat64; }

// Name of the open dimension at `place`, "" for a closed one.
std::string open_name(const TensorSpec& spec, size_t place) {
  if (spec.shape[place] >= 0) return "";
  return place < spec.dims.size() && !spec.dims[place].empty() ? spec.dims[place] : "?";
}

// ONNX Runtime shows a tensor of unknown rank like a scalar: it alone can tell.
bool fits(const Shape& declared, const Shape& wanted) {
  return declared.empty() || std::equal(declared.begin(), declared.end(), wanted.begin(), wanted.end(),
                                        [](int64_t fixed, int64_t dim) { return fixed < 0 || fixed == dim; });
}

void require_known(const std::vector<TensorSpec>& inputs, const InputSizes& sizes) {
  std::set<std::string> names, dims, unknown;
  for (const TensorSpec& input : inputs) {
    names.insert(input.name);
    for (size_t i = 0; i < input.shape.size(); ++i) dims.insert(open_name(input, i));
  }
  dims.erase("");
  for (const auto& size : sizes.sizes) {
    if (dims.count(size.first) == 0) unknown.insert(size.first);
  }
  for (const auto& shape : sizes.shapes) {
    if (names.count(shape.first) == 0) unknown.insert(shape.first);
  }
  if (unknown.empty()) return;
  std::string text;
  for (const std::string& name : unknown) text += (text.empty() ? "" : ", ") + name;
  throw Error("the model has no input or open dimension " + text + ": it takes " + listed(inputs),
              "Give shapes by the name of an input, and sizes by that of an open dimension.");
}

Shape resolved(const TensorSpec& input, const InputSizes& sizes) {
  const auto whole = sizes.shapes.find(input.name);
  Shape shape = input.shape;
  if (whole != sizes.shapes.end()) {
    shape = whole->second;
  } else {
    for (size_t i = 0; i < shape.size(); ++i) {
      const bool is_batch = i == 0;
      if (shape[i] >= 0 && !(is_batch && sizes.batch > 1)) continue;
      const auto named = shape[i] < 0 ? sizes.sizes.find(open_name(input, i)) : sizes.sizes.end();
      shape[i] = named != sizes.sizes.end() ? named->second : is_batch ? sizes.batch : 1;
    }
  }
  if (!fits(input.shape, shape)) {
    throw Error("input " + listed({input}) + " cannot have shape " + shape_text(shape),
                "Give as many sizes as it has, and its own where they are fixed; the batch is the first.");
  }
  return shape;
}

template <typename T>
void fill(Tensor& tensor, T value) {
  T* values = tensor.data<T>();
  std::fill(values, values + tensor.bytes.size() / sizeof(T), value);
}

// Normal noise by Box and Muller: the generator's sequence is fixed by the standard, the library's distributions are
// not.
class Noise {
 public:
  explicit Noise(uint64_t seed) : bits_(seed) {}

  double operator()() {
    const double radius = std::sqrt(-2 * std::log((static_cast<double>(bits_() >> 11) + 1) / 9007199254740992.0));
    return radius * std::cos(6.283185307179586 * static_cast<double>(bits_() >> 11) / 9007199254740992.0);
  }

 private:
  std::mt19937_64 bits_;
};

// Return the nearest float16 of a value in (-16, 16), as bits; noise is never larger. Below 2^-14 it becomes 0.
uint16_t half_bits(double value) {
  if (std::fabs(value) < 6.103515625e-05) return 0;
  int exponent = 0;
  const double fraction = std::frexp(std::fabs(value), &exponent);  // in [0.5, 1)
  // 2048 carries into the exponent, as it should.
  const auto bits = static_cast<int>(std::lround(fraction * 2048)) - 1024 + ((exponent + 14) << 10);
  return static_cast<uint16_t>(bits | (value < 0 ? 0x8000 : 0));
}

Tensor sample(const TensorSpec& input, const Shape& shape, Noise& noise) {
  Tensor tensor = make_tensor(input.dtype, shape);
  if (is_float(input.dtype)) {
    const size_t count = element_count(shape, input.dtype);
    for (size_t i = 0; i < count; ++i) {
      const double value = noise();
      if (input.dtype == DType::kFloat32) {
        tensor.data<float>()[i] = static_cast<float>(value);
      } else if (input.dtype == DType::kFloat64) {
        tensor.data<double>()[i] = value;
      } else {
        tensor.data<uint16_t>()[i] = half_bits(value);
      }
    }
  } else if (input.dtype == DType::kBool || input.name.find("mask") != std::string::npos) {
    if (input.dtype == DType::kInt64) {
      fill<int64_t>(tensor, 1);
    } else if (input.dtype == DType::kInt32) {
      fill<int32_t>(tensor, 1);
    } else {
      fill<uint8_t>(tensor, 1);
    }
  }
  return tensor;
}

// "12/x.npy" is array x of sample 12, "x.npy" that of sample 0.
std::pair<int64_t, std::string> place_and_name(const std::string& member) {
  const std::string key = member.substr(0, member.size() - (member.size() > 4 ? 4 : 0));
  const size_t slash = key.find('/');
  if (slash == std::string::npos || slash == 0 || slash > 9 || key.find_first_not_of("0123456789") != slash) {
    return {0, key};
  }
  return {std::stoll(key.substr(0, slash)), key.substr(slash + 1)};
}

}  // namespace

std::string listed(const std::vector<TensorSpec>& specs) {
  std::string text;
  for (const TensorSpec& spec : specs) {
    std::string dims;
    for (size_t i = 0; i < spec.shape.size(); ++i) {
      dims += (i == 0 ? "" : ", ") + (spec.shape[i] < 0 ? open_name(spec, i) : std::to_string(spec.shape[i]));
    }
    text += (text.empty() ? "" : ", ") + spec.name + " " + name_of(spec.dtype) + " [" + dims + "]";
  }
  return text;
}

Feeds sample_feeds(const std::vector<TensorSpec>& inputs, const InputSizes& sizes, uint64_t seed) {
  require_known(inputs, sizes);
  Noise noise(seed);
  Feeds feeds;
  for (const TensorSpec& input : inputs) feeds.push_back(sample(input, resolved(input, sizes), noise));
  return feeds;
}

std::vector<std::string> assumed_sizes(const std::vector<TensorSpec>& inputs, const InputSizes& sizes) {
  std::set<std::string> names;
  for (const TensorSpec& input : inputs) {
    if (sizes.shapes.count(input.name) != 0) continue;
    for (size_t i = 1; i < input.shape.size(); ++i) {
      const std::string name = open_name(input, i);
      if (!name.empty() && sizes.sizes.count(name) == 0) names.insert(name);
    }
  }
  return {names.begin(), names.end()};
}

std::vector<Feeds> read_feeds(const std::string& path, const std::vector<TensorSpec>& inputs) {
  const ZipFile file(path);
  std::map<int64_t, std::map<std::string, const ZipMember*>> samples;
  for (const ZipMember& member : file.members()) {
    const auto key = place_and_name(member.name);
    samples[key.first][key.second] = &member;
  }
  std::vector<Feeds> found;
  for (const auto& sample : samples) {
    Feeds feeds;
    for (const TensorSpec& input : inputs) {
      const auto member = sample.second.find(input.name);
      if (member == sample.second.end()) {
        throw Error(path + " has no array '" + input.name + "' in sample " + std::to_string(sample.first) +
                        ": the model takes " + listed(inputs),
                    kHowToWrite);
      }
      feeds.push_back(parse_npy(file.read(*member->second)));
    }
    found.push_back(std::move(feeds));
  }
  if (found.empty()) throw Error(path + " holds no arrays", kHowToWrite);
  return found;
}

}  // namespace tlc
