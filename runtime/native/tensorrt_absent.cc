// In the place of tensorrt.cc and tensorrt_build.cc where TensorRT's headers are missing.
#include "error.h"
#include "tensorrt.h"
#include "tensorrt_build.h"

namespace tlc {

namespace {

[[noreturn]] void absent() {
  throw Error("this tlc-run was compiled without TensorRT's headers",
              "Build it where NvInfer.h and NvOnnxParser.h are, as on a Jetson: cmake -D TLC_TENSORRT=ON.");
}

}  // namespace

bool has_tensorrt() { return false; }

std::string load_tensorrt(const OpenOptions&) { absent(); }

std::unique_ptr<Model> open_tensorrt(const std::string&, const OpenOptions&) { absent(); }

std::unique_ptr<Model> open_tensorrt_bytes(const std::string&, const OpenOptions&) { absent(); }

EngineMachine engine_machine() { absent(); }

BuiltPlan build_plan(const PlanRequest&, const std::function<void(const std::string&)>&) { absent(); }

}  // namespace tlc
