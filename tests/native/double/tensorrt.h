// A stand-in for TensorRT on machines without a GPU: every network "runs" as output = relu(input), tensor by tensor.
//
// Built from the interface of tests/native/interface, once for each generation of TensorRT, and loaded by tlc-run like
// the real libraries. What the builder was asked for stands as text in the plans that it writes. TLC_DOUBLE_TENSORRT
// says how it behaves, as NAME or NAME:MIB:
//   memory-above:N  building with a workspace of more than N MiB runs out of memory, with TensorRT's words
//   kill-above:N    the same, but the process is killed, as the kernel does it
//   kernel-below:N  with less than N MiB no kernel fits a layer
//   crash           building ends with a segmentation fault
//   no-node         the parser refuses node 3
//   other-version   the library calls itself 9.9
//   no-enqueue      inference is refused
#ifndef TLC_TESTS_DOUBLE_TENSORRT_H_
#define TLC_TESTS_DOUBLE_TENSORRT_H_

#include <NvInfer.h>

#include <cstdlib>
#include <string>
#include <vector>

#define DOUBLE_API extern "C" __attribute__((visibility("default")))

struct DoubleTensor : nvinfer1::ITensor {
  std::string name;
  nvinfer1::DataType dtype{};
  nvinfer1::Dims dims{};
  bool is_input = false;

  const char* getName() const noexcept override { return name.c_str(); }
  nvinfer1::Dims getDimensions() const noexcept override { return dims; }
  bool isShapeTensor() const noexcept override { return false; }
};

struct DoubleNetwork : nvinfer1::INetworkDefinition {
  uint32_t flags = 0;
  std::vector<DoubleTensor> inputs;
  std::vector<DoubleTensor> outputs;

  int32_t getNbInputs() const noexcept override { return static_cast<int32_t>(inputs.size()); }
  nvinfer1::ITensor* getInput(int32_t index) const noexcept override {
    return const_cast<DoubleTensor*>(&inputs[static_cast<size_t>(index)]);
  }
};

// Return N where the double behaves as NAME:N, 0 where it behaves as NAME, and -1 otherwise.
inline long long behaves(const std::string& name) {
  const char* value = std::getenv("TLC_DOUBLE_TENSORRT");
  const std::string text = value == nullptr ? "" : value;
  if (text == name) return 0;
  return text.rfind(name + ":", 0) == 0 ? std::atoll(text.c_str() + name.size() + 1) : -1;
}

#endif  // TLC_TESTS_DOUBLE_TENSORRT_H_
