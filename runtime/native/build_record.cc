#include "build_record.h"

#include <optional>

#include "json_object.h"
#include "sha256.h"

namespace tlc {

namespace {

std::string tensors_json(const std::vector<TensorSpec>& specs) {
  std::vector<JsonObject> tensors;
  for (const TensorSpec& spec : specs) {
    tensors.push_back(JsonObject().add("name", spec.name).add("shape", spec.shape).add("dtype", name_of(spec.dtype)));
  }
  return json_value(tensors);
}

JsonObject profile_json(const BuiltPlan& built) {
  JsonObject profile;
  for (size_t i = 0; i < built.inputs.size(); ++i) {
    const ProfileShapes& shapes = built.profiles[i];
    profile.add(built.inputs[i].name,
                JsonObject().add("min", shapes.min).add("opt", shapes.opt).add("max", shapes.max));
  }
  return profile;
}

// Return the value as JSON again, without the member `but` of an object.
std::string json_text(const Json& json, const std::string& but = "") {
  switch (json.kind()) {
    case Json::Kind::kNull:
      return "null";
    case Json::Kind::kBool:
      return json_value(json.boolean());
    case Json::Kind::kNumber:
      return json_number(json.number());
    case Json::Kind::kString:
      return json_string(json.string());
    case Json::Kind::kArray: {
      std::string text;
      for (const Json& value : json.array()) text += (text.empty() ? "" : ", ") + json_text(value);
      return "[" + text + "]";
    }
    case Json::Kind::kObject:
      break;
  }
  JsonObject object;
  for (const auto& member : json.object()) {
    if (member.first != but) object.add_json(member.first, json_text(member.second));
  }
  return object.text();
}

}  // namespace

std::string engine_record(const Attempt& attempt, const BuiltPlan& built) {
  JsonObject pools;
  for (const auto& pool : attempt.request.pools_bytes) pools.add(pool.first, pool.second);
  std::vector<std::string> warnings = attempt.warnings;
  warnings.insert(warnings.end(), built.warnings.begin(), built.warnings.end());
  return JsonObject()
      .add("schema_version", 1)
      .add("target", attempt.wanted->target)
      .add("plan_sha256", sha256_hex(built.plan))
      .add("plan_bytes", static_cast<int64_t>(built.plan.size()))
      .add("onnx", attempt.wanted->onnx_member)
      .add("onnx_sha256", sha256_hex(attempt.request.onnx))
      .add("builder", "tlc-run")
      .add("tensorrt", built.tensorrt)
      .add("sm", attempt.machine.gpu.sm)
      .add("gpu", attempt.machine.gpu.name)
      .add("power_mode", attempt.power_mode)
      .add("precision", attempt.request.precision)
      .add("strongly_typed", attempt.request.strongly_typed)
      .add_json("inputs", tensors_json(built.inputs))
      .add_json("outputs", tensors_json(built.outputs))
      .add("profile", profile_json(built))
      .add("builder_level", attempt.request.builder_level)
      .add("pools_bytes", pools)
      .add("version_compatible", false)
      .add("hardware_compatible", false)
      .add("stripped", false)
      .add("refittable", false)
      .add("dla_core", std::nullopt)
      .add("dla_layer_ratio", std::nullopt)
      .add("timing_cache_hit", built.timing_cache_hit)
      .add("build_s", built.build_s)
      .add("attempts", attempt.attempts)
      .add("device_memory_bytes", built.device_memory_bytes)
      .add("gpu_ms", std::nullopt)
      .add("layers", std::nullopt)
      .add_json("comparison", "[]")
      .add_json("candidates", "[]")
      .add("warnings", warnings)
      .text();
}

std::string with_feeding(const std::string& record, const Bundle& bundle) {
  const Json* fed = bundle.manifest().find("fed");
  JsonObject feeding;
  feeding.add("preprocess", fed == nullptr ? std::nullopt : std::optional<std::string>(json_text(*fed, "kind")));
  feeding.add("classes", bundle.classes());
  return record.substr(0, record.size() - 1) + ", " + feeding.text().substr(1);
}

}  // namespace tlc
