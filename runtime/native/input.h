// Inputs that a model can be run on without data.
#ifndef TLC_NATIVE_INPUT_H_
#define TLC_NATIVE_INPUT_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "args.h"
#include "ort_api.h"

namespace tlc {

// One input as the file declares it; a dynamic dimension is negative.
struct InputSpec {
  std::string name;
  OrtElementType type;
  Shape shape;
};

// The values of one input, as bytes in the machine's order.
struct Buffer {
  Shape shape;
  std::vector<unsigned char> bytes;
};

// Return numpy's name of the type ("float32"); throws Error for a type that cannot be made up.
std::string dtype_name(const InputSpec& input);

// Return each input's shape with 1 for a dynamic batch; `wanted` fills in the others by input name.
// Throws Error for a shape that does not fit the declared one, an unknown name, or a dimension nobody gave.
std::vector<Shape> resolve_shapes(const std::vector<InputSpec>& inputs, const std::map<std::string, Shape>& wanted);

// Return pseudo-random values, the same for the same seed on every machine: floats in [-1, 1), all of uint8 and int8,
// 0 or 1 for the other integers and bool, which are valid as indices and masks.
Buffer random_input(const InputSpec& input, const Shape& shape, uint64_t seed);

}  // namespace tlc

#endif  // TLC_NATIVE_INPUT_H_
