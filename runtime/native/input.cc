#include "input.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "error.h"

namespace tlc {

namespace {

constexpr int64_t kMaxInputBytes = int64_t{4} << 30;  // 4 GiB

struct Dtype {
  OrtElementType type;
  const char* name;
  size_t size_bytes;
};

constexpr Dtype kDtypes[] = {
    {kFloat, "float32", 4}, {kUint8, "uint8", 1}, {kInt8, "int8", 1},       {kInt32, "int32", 4},
    {kInt64, "int64", 8},   {kBool, "bool", 1},   {kFloat16, "float16", 2}, {kDouble, "float64", 8},
};

const Dtype& dtype_of(const InputSpec& input) {
  for (const Dtype& dtype : kDtypes) {
    if (dtype.type == input.type) return dtype;
  }
  throw Error("input '" + input.name + "' has ONNX element type " + std::to_string(input.type) +
                  ", for which no random values can be made",
              "Bench a model whose inputs are floats, integers or bool.");
}

std::string text(const Shape& shape) {
  std::string out;
  for (const int64_t dim : shape) out += (out.empty() ? "" : "x") + (dim < 0 ? "?" : std::to_string(dim));
  return out;
}

bool fits(const Shape& declared, const Shape& wanted) {
  return std::equal(declared.begin(), declared.end(), wanted.begin(), wanted.end(),
                    [](int64_t fixed, int64_t dim) { return fixed < 0 || fixed == dim; });
}

Shape resolve(const InputSpec& input, const Shape* wanted) {
  if (wanted != nullptr) {
    if (!fits(input.shape, *wanted)) {
      throw Error("--shape " + input.name + ":" + text(*wanted) + " does not fit the model's " + text(input.shape),
                  "Give every dimension, and change only those shown as ?.");
    }
    return *wanted;
  }
  Shape shape = input.shape;
  if (!shape.empty() && shape[0] < 0) shape[0] = 1;
  if (std::any_of(shape.begin(), shape.end(), [](int64_t dim) { return dim < 0; })) {
    throw Error("input '" + input.name + "' has dynamic dimensions besides the batch: " + text(input.shape),
                "Give its shape, as --shape " + input.name + ":1x3x224x224.");
  }
  return shape;
}

int64_t checked_size_bytes(const InputSpec& input, const Shape& shape) {
  int64_t size = static_cast<int64_t>(dtype_of(input).size_bytes);
  for (const int64_t dim : shape) {
    if (dim > 0 && size > kMaxInputBytes / dim) {
      throw Error("input '" + input.name + "' of shape " + text(shape) + " is larger than 4 GiB",
                  "Give a smaller --shape.");
    }
    size *= dim;
  }
  return size;
}

template <typename T, typename Draw>
void fill(std::vector<unsigned char>& bytes, Draw draw) {
  for (size_t at = 0; at < bytes.size(); at += sizeof(T)) {
    const T value = static_cast<T>(draw());
    std::memcpy(bytes.data() + at, &value, sizeof value);
  }
}

}  // namespace

std::string dtype_name(const InputSpec& input) { return dtype_of(input).name; }

std::vector<Shape> resolve_shapes(const std::vector<InputSpec>& inputs, const std::map<std::string, Shape>& wanted) {
  for (const auto& [name, shape] : wanted) {
    const auto same = [&name = name](const InputSpec& input) { return input.name == name; };
    if (std::any_of(inputs.begin(), inputs.end(), same)) continue;
    std::string names;
    for (const InputSpec& input : inputs) names += (names.empty() ? "" : ", ") + input.name;
    throw Error("the model has no input '" + name + "'", "Name one of its inputs: " + names + ".");
  }
  std::vector<Shape> shapes;
  for (const InputSpec& input : inputs) {
    const auto found = wanted.find(input.name);
    shapes.push_back(resolve(input, found == wanted.end() ? nullptr : &found->second));
  }
  return shapes;
}

Buffer random_input(const InputSpec& input, const Shape& shape, uint64_t seed) {
  Buffer buffer{shape, std::vector<unsigned char>(static_cast<size_t>(checked_size_bytes(input, shape)))};
  std::mt19937_64 bits(seed);  // its sequence is fixed by the standard; the library's distributions are not
  const auto unit = [&] { return static_cast<double>(bits() >> 11) / 4503599627370496.0 - 1.0; };  // 2^52
  switch (input.type) {
    case kFloat:
      fill<float>(buffer.bytes, [&] { return static_cast<float>(bits() >> 40) / 8388608.0F - 1.0F; });  // 2^23
      break;
    case kDouble:
      fill<double>(buffer.bytes, unit);
      break;
    case kFloat16:  // sign and mantissa at the exponent of [0.5, 1), where the bit pattern is simple
      fill<uint16_t>(buffer.bytes, [&] { return 0x3800U | (bits() & 0x83FFU); });
      break;
    case kUint8:
    case kInt8:
      fill<uint8_t>(buffer.bytes, [&] { return bits() >> 56; });
      break;
    case kInt32:
      fill<int32_t>(buffer.bytes, [&] { return bits() >> 63; });
      break;
    case kInt64:
      fill<int64_t>(buffer.bytes, [&] { return bits() >> 63; });
      break;
    case kBool:
      fill<uint8_t>(buffer.bytes, [&] { return bits() >> 63; });
      break;
  }
  return buffer;
}

}  // namespace tlc
