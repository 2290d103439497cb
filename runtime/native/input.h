// Inputs to measure a model with.
#ifndef TLC_NATIVE_INPUT_H_
#define TLC_NATIVE_INPUT_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tensor.h"

namespace tlc {

using Feeds = std::vector<Tensor>;  // in the order of the model's inputs

// How long the open dimensions of a model's inputs are.
struct InputSizes {
  int batch = 1;                         // an open first dimension, unless `sizes` names it
  std::map<std::string, int64_t> sizes;  // other open dimensions, by name; 1 for those that are not named
  std::map<std::string, Shape> shapes;   // whole shapes, by input
};

// Return feeds where there are no real ones: normal noise, zeros as tokens, and masks of ones; the same for the same
// seed on every machine. As sample_feeds() of runtime/session.py, but for the values of the noise.
// Throws Error for a name or shape that no input has, and for another batch than the file was exported for.
Feeds sample_feeds(const std::vector<TensorSpec>& inputs, const InputSizes& sizes, uint64_t seed);

// Return the open dimensions, the batch aside, that sample_feeds() takes to be 1 because nothing says otherwise.
std::vector<std::string> assumed_sizes(const std::vector<TensorSpec>& inputs, const InputSizes& sizes);

// Return what an .npz holds: "0/NAME", "1/NAME" and so on, or names without a number, which are one sample. Arrays that
// are no input are left out. Throws Error for another file, and where an input is missing.
std::vector<Feeds> read_feeds(const std::string& path, const std::vector<TensorSpec>& inputs);

// Return "x float32 [?, 3, 224, 224], mask int64 [?, T]".
std::string listed(const std::vector<TensorSpec>& specs);

}  // namespace tlc

#endif  // TLC_NATIVE_INPUT_H_
