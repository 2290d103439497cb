// Building an engine from an ONNX file. Both functions load CUDA and TensorRT into the process: call them in a child.
#ifndef TLC_NATIVE_TENSORRT_BUILD_H_
#define TLC_NATIVE_TENSORRT_BUILD_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda.h"
#include "plan.h"
#include "tensor.h"

namespace tlc {

// What decides how an engine is built.
struct EngineMachine {
  std::string tensorrt;  // version, such as "10.3.0"
  CudaDevice gpu;
};

struct PlanRequest {
  std::string onnx;                             // bytes of the file
  std::string name;                             // what messages call it
  std::string precision;                        // "fp32", "fp16", "int8" or "best": both of the last two
  bool strongly_typed = false;                  // whether precisions stand in the graph: then no flag is set
  std::map<std::string, ProfileShapes> shapes;  // of the inputs with an open dimension
  std::vector<std::pair<std::string, int64_t>> pools_bytes;  // memory pools by TensorRT's name
  std::optional<int> builder_level;
  std::optional<int> aux_streams;  // extra streams; 0 takes the least memory, none is TensorRT's choice
  std::string timing_cache;        // file that timings are kept in
};

struct BuiltPlan {
  std::string plan;
  std::string tensorrt;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  std::vector<ProfileShapes> profiles;  // of the inputs
  int64_t device_memory_bytes = 0;      // scratch memory of one execution context
  bool timing_cache_hit = false;
  double build_s = 0;
  std::vector<std::string> warnings;
};

// Throws Error without a GPU, or without TensorRT in a release that this program was compiled for.
EngineMachine engine_machine();

// Build the engine; `stage` is told what comes next, for the case that it ends the process. Throws Error with
// TensorRT's words.
BuiltPlan build_plan(const PlanRequest& request, const std::function<void(const std::string&)>& stage);

}  // namespace tlc

#endif  // TLC_NATIVE_TENSORRT_BUILD_H_
