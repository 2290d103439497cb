// Arrays, and what a model declares about them.
#ifndef TLC_NATIVE_TENSOR_H_
#define TLC_NATIVE_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace tlc {

enum class DType { kFloat32, kFloat16, kFloat64, kUint8, kInt8, kInt32, kInt64, kBool };

// Return numpy's name of the type, such as "float32".
const char* name_of(DType dtype);

// Return the type of that name; throws Error for any other.
DType dtype_of(const std::string& name);

size_t size_bytes(DType dtype);

using Shape = std::vector<int64_t>;

// Return "1x3x224x224", with ? for a negative dimension.
std::string shape_text(const Shape& shape);

// Return the number of elements; throws Error for a negative dimension, and where the bytes would exceed 4 GiB.
size_t element_count(const Shape& shape, DType dtype);

// An input or output as the model declares it; an open dimension is negative.
struct TensorSpec {
  std::string name;
  DType dtype;
  Shape shape;
  std::vector<std::string> dims = {};  // by dimension: name of an open one, "?" for none, "" where it is closed
};

// Values in C order and in the machine's byte order.
struct Tensor {
  DType dtype = DType::kFloat32;
  Shape shape;
  std::vector<unsigned char> bytes;

  template <typename T>
  T* data() {
    return reinterpret_cast<T*>(bytes.data());
  }
  template <typename T>
  const T* data() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
};

// Return zeros; throws as element_count.
Tensor make_tensor(DType dtype, const Shape& shape);

}  // namespace tlc

#endif  // TLC_NATIVE_TENSOR_H_
