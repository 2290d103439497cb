// The parser's double reads names, types and shapes of inputs and outputs from the ONNX file, and no layers: protobuf's
// wire format with the field numbers of onnx.proto.
#include <NvOnnxParser.h>

#include "tensorrt.h"

namespace {

using namespace nvinfer1;

struct Field {
  uint64_t number = 0;
  uint64_t value = 0;  // of a number
  std::string bytes;   // of a text or message
};

uint64_t varint(const std::string& data, size_t& at) {
  uint64_t value = 0;
  for (int shift = 0; at < data.size(); shift += 7) {
    const auto byte = static_cast<unsigned char>(data[at++]);
    value |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) break;
  }
  return value;
}

std::vector<Field> fields(const std::string& data) {
  std::vector<Field> found;
  for (size_t at = 0; at < data.size();) {
    const uint64_t key = varint(data, at);
    Field field;
    field.number = key >> 3;
    if ((key & 7) == 0) {
      field.value = varint(data, at);
    } else if ((key & 7) == 2) {
      const uint64_t size = varint(data, at);
      if (size > data.size() - at) return {};
      field.bytes = data.substr(at, size);
      at += size;
    } else {
      at += (key & 7) == 1 ? 8 : 4;
    }
    found.push_back(field);
  }
  return found;
}

// Return the bytes of the last field of that number.
std::string part(const std::string& data, uint64_t number) {
  std::string bytes;
  for (const Field& field : fields(data)) {
    if (field.number == number) bytes = field.bytes;
  }
  return bytes;
}

DataType dtype_of(uint64_t onnx) {
  switch (onnx) {
    case 10:
      return DataType::kHALF;
    case 3:
      return DataType::kINT8;
    case 6:
      return DataType::kINT32;
    case 9:
      return DataType::kBOOL;
#if TLC_INTERFACE_FROM(8, 5)
    case 2:
      return DataType::kUINT8;
#endif
    case 7:
#if TLC_INTERFACE_FROM(10, 0)
      return DataType::kINT64;
#else
      return DataType::kINT32;  // 8.x narrows them
#endif
    default:
      return DataType::kFLOAT;
  }
}

DoubleTensor tensor_of(const std::string& info, bool is_input) {
  DoubleTensor tensor;
  tensor.is_input = is_input;
  tensor.name = part(info, 1);
  const std::string type = part(part(info, 2), 1);
  for (const Field& field : fields(type)) {
    if (field.number == 1) tensor.dtype = dtype_of(field.value);
  }
  for (const Field& dim : fields(part(type, 2))) {
    int64_t size = -1;
    for (const Field& field : fields(dim.bytes)) {
      if (field.number == 1) size = static_cast<int64_t>(field.value);
    }
    tensor.dims.d[tensor.dims.nbDims++] = static_cast<std::decay_t<decltype(tensor.dims.d[0])>>(size);
  }
  return tensor;
}

struct ParserError : nvonnxparser::IParserError {
  const char* desc() const override { return "Unsupported operator Mystery"; }
  int node() const override { return 3; }
#if TLC_INTERFACE_FROM(10, 0)
  const char* nodeName() const override { return "mystery_3"; }
#endif
};

struct Parser : nvonnxparser::IParser {
  explicit Parser(DoubleNetwork& its) : network(its) {}
  DoubleNetwork& network;
  ParserError error;
  int errors = 0;

  bool parse(const void* onnx, std::size_t size, const char*) override {
    const std::string graph = part(std::string(static_cast<const char*>(onnx), size), 7);
    for (const Field& field : fields(graph)) {
      if (field.number == 11) network.inputs.push_back(tensor_of(field.bytes, true));
      if (field.number == 12) network.outputs.push_back(tensor_of(field.bytes, false));
    }
    errors = behaves("no-node") >= 0 || network.inputs.empty() ? 1 : 0;
    return errors == 0;
  }
  int getNbErrors() const override { return errors; }
  const nvonnxparser::IParserError* getError(int) const override { return &error; }
};

}  // namespace

DOUBLE_API void* createNvOnnxParser_INTERNAL(void* network, void*, int) noexcept {
  auto& defined = static_cast<DoubleNetwork&>(*static_cast<INetworkDefinition*>(network));
  return static_cast<nvonnxparser::IParser*>(new Parser(defined));
}
