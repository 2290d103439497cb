#include "tensor.h"

#include "error.h"

namespace tlc {

namespace {

// Tensors are read from little-endian files and handed to the runtimes as they are.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tlc runs on little-endian machines");
static_assert(sizeof(size_t) == 8, "tlc runs on 64-bit machines");

constexpr size_t kMaxBytes = size_t{4} << 30;  // 4 GiB

struct Row {
  DType dtype;
  const char* name;
  size_t size_bytes;
};

constexpr Row kRows[] = {
    {DType::kFloat32, "float32", 4}, {DType::kFloat16, "float16", 2}, {DType::kFloat64, "float64", 8},
    {DType::kUint8, "uint8", 1},     {DType::kInt8, "int8", 1},       {DType::kInt32, "int32", 4},
    {DType::kInt64, "int64", 8},     {DType::kBool, "bool", 1},
};

const Row& row_of(DType dtype) {
  for (const Row& row : kRows) {
    if (row.dtype == dtype) return row;
  }
  throw Error("there is no element type " + std::to_string(static_cast<int>(dtype)), "Report this as an error of tlc.");
}

}  // namespace

const char* name_of(DType dtype) { return row_of(dtype).name; }

DType dtype_of(const std::string& name) {
  std::string names;
  for (const Row& row : kRows) {
    if (name == row.name) return row.dtype;
    names += (names.empty() ? "" : ", ") + std::string(row.name);
  }
  throw Error("element type '" + name + "' is not supported", "Use one of " + names + ".");
}

size_t size_bytes(DType dtype) { return row_of(dtype).size_bytes; }

std::string shape_text(const Shape& shape) {
  std::string out;
  for (const int64_t dim : shape) out += (out.empty() ? "" : "x") + (dim < 0 ? "?" : std::to_string(dim));
  return out;
}

size_t element_count(const Shape& shape, DType dtype) {
  size_t bytes = size_bytes(dtype);
  for (const int64_t dim : shape) {
    if (dim < 0) throw Error("shape " + shape_text(shape) + " has an open dimension", "Give every dimension.");
    if (dim > 0 && bytes > kMaxBytes / static_cast<uint64_t>(dim)) {
      throw Error(
          std::string("a tensor of ") + name_of(dtype) + " and shape " + shape_text(shape) + " is larger than 4 GiB",
          "Use a smaller shape.");
    }
    bytes *= static_cast<size_t>(dim);
  }
  return bytes / size_bytes(dtype);
}

Tensor make_tensor(DType dtype, const Shape& shape) {
  const size_t bytes = element_count(shape, dtype) * size_bytes(dtype);
  return Tensor{dtype, shape, std::vector<unsigned char>(bytes)};
}

}  // namespace tlc
