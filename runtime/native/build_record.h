// The record of an engine that tlc-run build writes: EngineRecord of runtime/plan.py.
#ifndef TLC_NATIVE_BUILD_RECORD_H_
#define TLC_NATIVE_BUILD_RECORD_H_

#include <cstdint>
#include <string>
#include <vector>

#include "bundle.h"
#include "tensorrt_build.h"

namespace tlc {

// What of the bundle decides the engine.
struct Wanted {
  std::string onnx_member;
  std::string target;
  std::string target_version;  // of TensorRT, such as "10.3"
  std::vector<std::string> target_sm;
  int64_t target_workspace_bytes = 0;
  PlanRequest request;  // without the file's bytes, limits and cache
};

// The whole of an engine's record, but for what its building finds out.
struct Attempt {
  const Wanted* wanted;
  EngineMachine machine;
  std::string power_mode;
  std::vector<std::string> attempts;
  std::vector<std::string> warnings;
  PlanRequest request;
  std::string part;  // where the plan is written
};

// Return the fields that building knows, as a JSON object.
std::string engine_record(const Attempt& attempt, const BuiltPlan& built);

// Return the record with what the bundle says of feeding the model: `preprocess` is JSON in a text, as ONNX files of
// tlc have it in their metadata.
std::string with_feeding(const std::string& record, const Bundle& bundle);

}  // namespace tlc

#endif  // TLC_NATIVE_BUILD_RECORD_H_
