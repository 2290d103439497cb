// A TensorRT engine file and its sidecar NAME.plan.json, as runtime/plan.py has them. Needs no TensorRT.
#ifndef TLC_NATIVE_PLAN_H_
#define TLC_NATIVE_PLAN_H_

#include <optional>
#include <string>

#include "tensor.h"

namespace tlc {

// Shapes of one input that an engine accepts, and the one that it is tuned for.
struct ProfileShapes {
  Shape min;
  Shape opt;
  Shape max;
};

// What decides whether an engine fits a machine.
struct PlanRecord {
  std::string onnx;      // name of the file it was built from
  std::string target;    // name of the target it was built for
  std::string sha256;    // of the plan
  std::string tensorrt;  // full version, such as "10.3.0.26"
  std::string sm;        // compute capability, such as "8.7"
  std::string gpu;
  bool version_compatible = false;
  bool hardware_compatible = false;
  bool stripped = false;
  std::optional<int> dla_core;
};

// Return the version of TensorRT in a plan's header, such as "10.3.0.26"; none where the layout is not known. `head`
// is the file's beginning (28 bytes are enough), `name` what messages call it. Throws Error for what is no plan.
std::optional<std::string> plan_version(const std::string& head, const std::string& name);

// Return the sidecar of the plan at `path`; throws Error where it is missing or broken.
PlanRecord read_plan_record(const std::string& path);

// Throw Error, with the next step, unless `plan`, read from `path`, is the recorded one and fits TensorRT `version` and
// a GPU of compute capability `sm` called `gpu`.
void check_plan(const std::string& path, const std::string& plan, const PlanRecord& record, const std::string& version,
                const std::string& sm, const std::string& gpu);

// Return whether `first` and `second` agree in as many numbers as both have: "10.3.0" and "10.3.0.26" do.
bool same_version(const std::string& first, const std::string& second);

}  // namespace tlc

#endif  // TLC_NATIVE_PLAN_H_
