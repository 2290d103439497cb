#include "tensorrt_build.h"

#include <NvOnnxParser.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "error.h"
#include "files.h"
#include "tensorrt_api.h"
#include "tensorrt_io.h"

namespace tlc {

namespace {

constexpr size_t kShown = 5;  // errors in a message

std::string joined(const std::vector<std::string>& parts, const std::string& none) {
  std::string text;
  for (size_t i = parts.size() > kShown ? parts.size() - kShown : 0; i < parts.size(); ++i) {
    text += (text.empty() ? "" : " | ") + parts[i];
  }
  return text.empty() ? none : text;
}

[[maybe_unused]] Error lacking(const TensorRt& tensorrt, const std::string& what) {
  return Error("TensorRT " + tensorrt.version() + " has no " + what, "Leave that option out for this release.");
}

// Explicit batch where the flag still means something, strong typing where it is asked for. From 11 on every network is
// strongly typed. The numbers of flags moved between releases, so they are asked for by name.
uint32_t network_flags(const TensorRt& tensorrt, bool strongly_typed) {
#if TLC_TENSORRT_FROM(11, 0)
  static_cast<void>(tensorrt);
  static_cast<void>(strongly_typed);
  return 0;
#elif TLC_TENSORRT_FROM(10, 0)
  static_cast<void>(tensorrt);
  return strongly_typed ? 1U << static_cast<uint32_t>(nvinfer1::NetworkDefinitionCreationFlag::kSTRONGLY_TYPED) : 0U;
#else
  if (strongly_typed) throw lacking(tensorrt, "strong typing");
  return 1U << static_cast<uint32_t>(nvinfer1::NetworkDefinitionCreationFlag::kEXPLICIT_BATCH);
#endif
}

// What kernels may compute in beside float32.
void set_precision(const TensorRt& tensorrt, nvinfer1::IBuilderConfig& config, const PlanRequest& request) {
  const bool fp16 = request.precision == "fp16" || request.precision == "best";
  const bool int8 = request.precision == "int8" || request.precision == "best";
  if (request.strongly_typed || (!fp16 && !int8)) return;
#if TLC_TENSORRT_FROM(11, 0)
  static_cast<void>(config);
  throw lacking(tensorrt, "flags for precisions: they stand in the file");
#else
  static_cast<void>(tensorrt);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"  // from 10.12 on; targets from there on are strongly typed
  if (fp16) config.setFlag(nvinfer1::BuilderFlag::kFP16);
  if (int8) config.setFlag(nvinfer1::BuilderFlag::kINT8);
#pragma GCC diagnostic pop
#endif
}

void set_limits(const TensorRt& tensorrt, nvinfer1::IBuilderConfig& config, const PlanRequest& request) {
  for (const auto& pool : request.pools_bytes) {
    const auto size = static_cast<size_t>(pool.second);
#if TLC_TENSORRT_FROM(8, 4)
    if (pool.first == "WORKSPACE") config.setMemoryPoolLimit(nvinfer1::MemoryPoolType::kWORKSPACE, size);
#else
    if (pool.first == "WORKSPACE") config.setMaxWorkspaceSize(size);
#endif
#if TLC_TENSORRT_FROM(8, 6)
    if (pool.first == "TACTIC_DRAM") config.setMemoryPoolLimit(nvinfer1::MemoryPoolType::kTACTIC_DRAM, size);
#endif
  }
#if TLC_TENSORRT_FROM(8, 6)
  static_cast<void>(tensorrt);
  if (request.builder_level) config.setBuilderOptimizationLevel(*request.builder_level);
  if (request.aux_streams) config.setMaxAuxStreams(*request.aux_streams);
#else
  if (request.builder_level) throw lacking(tensorrt, "builder levels");
#endif
}

bool is_open(const nvinfer1::Dims& dims) {
  return std::any_of(dims.d, dims.d + dims.nbDims, [](int64_t dim) { return dim < 0; });
}

// Add an optimisation profile when an input is dynamic; the builder owns it.
void set_profile(nvinfer1::IBuilder& builder, const nvinfer1::INetworkDefinition& network,
                 nvinfer1::IBuilderConfig& config, const PlanRequest& request) {
  using nvinfer1::OptProfileSelector;
  nvinfer1::IOptimizationProfile* profile = nullptr;
  bool accepted = true;
  for (int32_t i = 0; i < network.getNbInputs(); ++i) {
    const nvinfer1::ITensor& tensor = *network.getInput(i);
    const std::string name = tensor.getName();
    if (tensor.isShapeTensor()) {
      throw Error("input " + name + " of " + request.name + " holds a shape: such inputs are not supported",
                  "Export with fixed shapes, or with the batch alone left open.");
    }
    if (!is_open(tensor.getDimensions())) continue;
    const auto limits = request.shapes.find(name);
    if (limits == request.shapes.end()) {
      throw Error("input " + name + " of " + request.name + " is [" + shape_text(shape_of(tensor.getDimensions())) +
                      "], and the bundle's build.profile has no shapes for it",
                  "Pack it again with --profile.");
    }
    if (profile == nullptr) profile = builder.createOptimizationProfile();
    const ProfileShapes& shapes = limits->second;
    accepted &= profile->setDimensions(name.c_str(), OptProfileSelector::kMIN, dims_of(shapes.min));
    accepted &= profile->setDimensions(name.c_str(), OptProfileSelector::kOPT, dims_of(shapes.opt));
    accepted &= profile->setDimensions(name.c_str(), OptProfileSelector::kMAX, dims_of(shapes.max));
  }
  if (profile == nullptr || (accepted && config.addOptimizationProfile(profile) >= 0)) return;
  std::string shapes;
  for (const auto& entry : request.shapes) {
    shapes += " " + entry.first + " [" + shape_text(entry.second.min) + "] [" + shape_text(entry.second.opt) + "] [" +
              shape_text(entry.second.max) + "]";
  }
  throw Error("TensorRT refuses the shapes" + shapes,
              "Each dimension needs min <= opt <= max, and what the graph fixes must be kept.");
}

// Timings of earlier builds, given to the builder and kept afterwards.
class TimingCache {
 public:
  TimingCache(nvinfer1::IBuilderConfig& config, const std::string& path) : config_(config), path_(path) {
    const std::string kept = access(path.c_str(), R_OK) == 0 ? read_file(path) : "";
    // The second argument: timings of another device are not accepted.
    if (use(kept)) {
      hit_ = !kept.empty();
    } else {
      use("");
    }
  }

  bool hit() const { return hit_; }

  // Write the timings; throws Error.
  void keep() const {
    const nvinfer1::ITimingCache* cache = config_.getTimingCache();
    if (cache == nullptr) return;
    const std::unique_ptr<nvinfer1::IHostMemory> bytes(cache->serialize());
    if (bytes == nullptr) return;
    make_folders(path_.substr(0, path_.rfind('/')));
    replace_file(path_, std::string(static_cast<const char*>(bytes->data()), bytes->size()));
  }

 private:
  bool use(const std::string& kept) {
    std::unique_ptr<nvinfer1::ITimingCache> cache(config_.createTimingCache(kept.data(), kept.size()));
    if (cache == nullptr || !config_.setTimingCache(*cache, false)) return false;
    cache_ = std::move(cache);  // it must outlive the build
    return true;
  }

  nvinfer1::IBuilderConfig& config_;
  std::string path_;
  std::unique_ptr<nvinfer1::ITimingCache> cache_;
  bool hit_ = false;
};

// The reader of ONNX files, in a library of its own.
std::unique_ptr<nvonnxparser::IParser> make_parser(TensorRt& tensorrt, nvinfer1::INetworkDefinition& network) {
  // Never freed: what it made is used as long as the network.
  static const auto* library = new Library(tensorrt.sibling("libnvonnxparser"), "TensorRT's reader of ONNX files",
                                           "Install the full package of TensorRT, with libnvonnxparser.");
  const auto create = library->function<void*(void*, void*, int)>("createNvOnnxParser_INTERNAL");
  void* parser = create(&network, static_cast<nvinfer1::ILogger*>(&tensorrt.log()), NV_ONNX_PARSER_VERSION);
  if (parser == nullptr) {
    throw Error("TensorRT " + tensorrt.version() + " cannot start its reader of ONNX files" + tensorrt.log().said(),
                "Install libnvonnxparser in the release of libnvinfer.");
  }
  return std::unique_ptr<nvonnxparser::IParser>(static_cast<nvonnxparser::IParser*>(parser));
}

Error unreadable(const TensorRt& tensorrt, const PlanRequest& request, const nvonnxparser::IParser& parser) {
  std::string text;
  const int count = parser.getNbErrors();
  for (int i = 0; i < std::min(count, static_cast<int>(kShown)); ++i) {
    const nvonnxparser::IParserError& error = *parser.getError(i);
    std::string node = std::to_string(error.node());
#if TLC_TENSORRT_FROM(10, 0)
    if (error.nodeName() != nullptr && *error.nodeName() != '\0') node = error.nodeName();
#endif
    text += (text.empty() ? "node " : " | node ") + node + ": " + error.desc();
  }
  if (count > static_cast<int>(kShown)) text += " | and " + std::to_string(count - static_cast<int>(kShown)) + " more";
  return Error("TensorRT " + tensorrt.version() + " cannot read " + request.name + ": " +
                   (text.empty() ? "it does not say why" : text),
               "tlc check tells what the target refuses, and --fix repairs what can be.");
}

int64_t scratch_bytes(const nvinfer1::ICudaEngine& engine) {
#if TLC_TENSORRT_FROM(10, 1)
  return engine.getDeviceMemorySizeV2();
#else
  return static_cast<int64_t>(engine.getDeviceMemorySize());
#endif
}

}  // namespace

EngineMachine engine_machine() {
  EngineMachine machine;
  machine.gpu = Cuda::get().device();
  machine.tensorrt = TensorRt::get("").version();
  return machine;
}

BuiltPlan build_plan(const PlanRequest& request, const std::function<void(const std::string&)>& stage) {
  Cuda::get();
  TensorRt& tensorrt = TensorRt::get("");
  const auto builder = tensorrt.make_builder();
  const std::unique_ptr<nvinfer1::INetworkDefinition> network(
      builder->createNetworkV2(network_flags(tensorrt, request.strongly_typed)));
  const auto parser = make_parser(tensorrt, *network);
  stage("reading the graph");
  if (!parser->parse(request.onnx.data(), request.onnx.size(), nullptr)) throw unreadable(tensorrt, request, *parser);
  const std::unique_ptr<nvinfer1::IBuilderConfig> config(builder->createBuilderConfig());
  config->setProfilingVerbosity(nvinfer1::ProfilingVerbosity::kDETAILED);
  set_precision(tensorrt, *config, request);
  set_limits(tensorrt, *config, request);
  set_profile(*builder, *network, *config, request);
  const TimingCache cache(*config, request.timing_cache);

  stage("trying kernels");
  const auto start = std::chrono::steady_clock::now();
  const std::unique_ptr<nvinfer1::IHostMemory> plan(builder->buildSerializedNetwork(*network, *config));
  BuiltPlan built;
  built.build_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (plan == nullptr) {
    throw Error("TensorRT " + tensorrt.version() + " cannot build " + request.name + ": " +
                    joined(tensorrt.log().errors(), "it does not say why"),
                "The words above are TensorRT's own: they name the layer. tlc check tells what the target refuses.");
  }
  built.plan.assign(static_cast<const char*>(plan->data()), plan->size());
  built.warnings = tensorrt.log().warnings();
  built.timing_cache_hit = cache.hit();
  try {
    cache.keep();
  } catch (const Error& error) {
    built.warnings.push_back("timings are not kept for the next build: " + std::string(error.what()));
  }

  stage("loading the engine");
  const auto runtime = tensorrt.make_runtime();
  const auto engine = load_engine(tensorrt, *runtime, built.plan, request.name, false, -1);
  EngineTensors tensors = tensors_of(*engine);
  built.tensorrt = plan_version(built.plan, request.name).value_or(tensorrt.version());
  built.inputs = std::move(tensors.inputs);
  built.outputs = std::move(tensors.outputs);
  built.profiles = std::move(tensors.profiles);
  built.device_memory_bytes = scratch_bytes(*engine);
  return built;
}

}  // namespace tlc
