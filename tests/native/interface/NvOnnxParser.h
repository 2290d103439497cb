// The part of TensorRT's ONNX parser that tlc-run calls; see NvInfer.h beside it.
#ifndef TLC_TESTS_NVONNXPARSER_H_
#define TLC_TESTS_NVONNXPARSER_H_

#include <NvInfer.h>

constexpr int NV_ONNX_PARSER_VERSION = 100;

namespace nvonnxparser {

class IParserError {
 public:
  virtual ~IParserError() = default;
  virtual const char* desc() const = 0;
  virtual int node() const = 0;
#if TLC_INTERFACE_FROM(10, 0)
  virtual const char* nodeName() const = 0;
#endif
};

class IParser {
 public:
  virtual ~IParser() = default;
  virtual bool parse(const void* onnx, std::size_t size, const char* path) = 0;
  virtual int getNbErrors() const = 0;
  virtual const IParserError* getError(int index) const = 0;
};

}  // namespace nvonnxparser

#endif  // TLC_TESTS_NVONNXPARSER_H_
