#include "feeds.h"

#include "error.h"

namespace tlc {

namespace {

bool fits(const Shape& declared, const Shape& fed) {
  // ONNX Runtime shows a tensor of unknown rank like a scalar, and checks scalars itself.
  if (declared.empty()) return true;
  if (declared.size() != fed.size()) return false;
  for (size_t i = 0; i < declared.size(); ++i) {
    if (declared[i] >= 0 && declared[i] != fed[i]) return false;
  }
  return true;
}

std::string described(DType dtype, const Shape& shape) {
  return std::string(name_of(dtype)) + " [" + shape_text(shape) + "]";
}

}  // namespace

void check_feeds(const std::vector<TensorSpec>& inputs, const std::vector<Tensor>& feeds) {
  if (feeds.size() != inputs.size()) {
    throw Error("the model takes " + std::to_string(inputs.size()) + " inputs, got " + std::to_string(feeds.size()),
                "Feed every input, in the model's order.");
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    const TensorSpec& spec = inputs[i];
    const Tensor& feed = feeds[i];
    if (feed.dtype != spec.dtype || !fits(spec.shape, feed.shape)) {
      throw Error("input " + spec.name + " is " + described(spec.dtype, spec.shape) + ", got " +
                      described(feed.dtype, feed.shape),
                  "Prepare the input with the preprocessing that the model was made for.");
    }
    const size_t needed = element_count(feed.shape, feed.dtype) * size_bytes(feed.dtype);
    if (feed.bytes.size() != needed) {
      throw Error("input " + spec.name + " has " + std::to_string(feed.bytes.size()) + " bytes, and [" +
                      shape_text(feed.shape) + "] needs " + std::to_string(needed),
                  "Feed as many values as the shape says.");
    }
  }
}

}  // namespace tlc
