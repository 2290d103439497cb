// What a classifier's outputs say.
#ifndef TLC_NATIVE_VALUES_H_
#define TLC_NATIVE_VALUES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tensor.h"

namespace tlc {

// Return the values in C order, of any type, as numbers.
std::vector<double> as_doubles(const Tensor& tensor);

// Return the tensor of float32 in another floating type, rounded to the nearest; throws Error for other types.
Tensor as_floating(const Tensor& tensor, DType dtype);

// Return the scores of one sample's classes, (K,), from a model's outputs, of which the first must be (B, K) or (K,):
// of B rows, which hold the same sample, the first. Throws Error for another shape, a K that is not `classes` (0: any),
// NaN and infinity.
std::vector<double> class_scores(const std::vector<Tensor>& outputs, size_t classes, int64_t batch);

// Return the position of the highest score; of several, the first, as arg-max does.
size_t best_class(const std::vector<double>& scores);

// Return exp(s) / sum exp(s); scores that are probabilities already stay as they are.
std::vector<double> probabilities(const std::vector<double>& scores);

// Return the signal-to-noise ratio 10 log10(sum r^2 / sum (r - c)^2) in dB: infinite without noise, -infinite where the
// reference is all zeros or the candidate is not finite. Both must have the same number of values.
double snr_db(const std::vector<double>& reference, const std::vector<double>& candidate);

// Return the class's name, or its number where it has none.
std::string class_name(const std::vector<std::string>& classes, size_t position);

}  // namespace tlc

#endif  // TLC_NATIVE_VALUES_H_
