// Inputs and outputs of an engine: by name from TensorRT 8.5 on, by index before.
#ifndef TLC_NATIVE_TENSORRT_IO_H_
#define TLC_NATIVE_TENSORRT_IO_H_

#include <map>
#include <string>
#include <vector>

#include "plan.h"
#include "tensor.h"
#include "tensorrt_api.h"

namespace tlc {

// What an engine takes and gives.
struct EngineTensors {
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  std::vector<ProfileShapes> profiles;  // of the inputs: what the first profile takes
};

// Throws Error for a tensor of a type that is not supported.
EngineTensors tensors_of(const nvinfer1::ICudaEngine& engine);

// One execution context's side of it.
class ContextIo {
 public:
  ContextIo(const nvinfer1::ICudaEngine& engine, nvinfer1::IExecutionContext& context);

  // Choose the shape of an input; throws Error where TensorRT refuses it.
  void set_shape(const std::string& name, const Shape& shape);

  // Return the shape that the context now gives a tensor; -1 where it is not decided.
  Shape shape(const std::string& name) const;

  // Say where a tensor lies in GPU memory.
  void bind(const std::string& name, void* address);

  // Queue one inference; false when TensorRT refuses.
  bool enqueue(void* stream);

 private:
  nvinfer1::IExecutionContext& context_;
#if !TLC_TENSORRT_FROM(8, 5)
  std::map<std::string, int32_t> index_;
  std::vector<void*> addresses_;
#endif
};

}  // namespace tlc

#endif  // TLC_NATIVE_TENSORRT_IO_H_
