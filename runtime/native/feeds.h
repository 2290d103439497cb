// What is fed against what a model takes.
#ifndef TLC_NATIVE_FEEDS_H_
#define TLC_NATIVE_FEEDS_H_

#include <vector>

#include "tensor.h"

namespace tlc {

// Throw Error unless `feeds` are as many as `inputs`, each of its input's type and closed dimensions, and with as many
// bytes as its shape needs.
void check_feeds(const std::vector<TensorSpec>& inputs, const std::vector<Tensor>& feeds);

}  // namespace tlc

#endif  // TLC_NATIVE_FEEDS_H_
