// numpy's .npy format, version 1 to 3: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#ifndef TLC_NATIVE_NPY_H_
#define TLC_NATIVE_NPY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tensor.h"

namespace tlc {

// Where the values of an .npy lie in its bytes.
struct NpyHeader {
  DType dtype;
  Shape shape;
  size_t data_offset;
};

// Parse the header of an .npy of `total_bytes`, of which `head` is the beginning (4096 bytes are enough). Throws Error
// for other formats, Fortran order, big-endian values, other types, and a size that is not the header's.
NpyHeader parse_npy_header(const std::string& head, uint64_t total_bytes);

// Return the values; throws as parse_npy_header.
Tensor parse_npy(const std::string& bytes);

// Return the names in a one-dimensional array of text (dtype <U), as `classes` in an .npz; throws Error.
std::vector<std::string> parse_npy_text(const std::string& bytes);

// Return the file's bytes, version 1.0.
std::string npy_bytes(const Tensor& tensor);

}  // namespace tlc

#endif  // TLC_NATIVE_NPY_H_
