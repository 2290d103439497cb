#include "tensorrt_api.h"

#include <algorithm>

#include "error.h"

namespace tlc {

namespace {

constexpr char kWhereToGet[] =
    "On a Jetson it belongs to JetPack: apt install nvidia-jetpack. Elsewhere install TensorRT's runtime, or name the "
    "library: TLC_TENSORRT_LIB=/path/to/libnvinfer.so.N";

constexpr char kBuildAgain[] = "Build tlc-run on this machine, with the headers of its TensorRT.";

std::string numbered(const std::string& stem) { return stem + ".so." + std::to_string(NV_TENSORRT_MAJOR); }

// getInferLibVersion counts 8.6.1 as 8601 and, from 10 on, 10.3.0 as 100300.
std::vector<int> numbers_of(int version) {
  if (version >= 100000) return {version / 10000, version / 100 % 100, version % 100};
  return {version / 1000, version / 100 % 10, version % 100};
}

std::string dotted(const std::vector<int>& numbers) {
  std::string text;
  for (const int number : numbers) text += (text.empty() ? "" : ".") + std::to_string(number);
  return text;
}

}  // namespace

void TensorRtLog::log(Severity severity, const char* message) noexcept {
  if (severity > Severity::kWARNING) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  lines_.emplace_back(severity != Severity::kWARNING, message);
}

void TensorRtLog::clear() {
  const std::lock_guard<std::mutex> lock(mutex_);
  lines_.clear();
}

std::vector<std::string> TensorRtLog::lines(bool errors) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::string> found;
  for (const auto& line : lines_) {
    if (line.first == errors && std::find(found.begin(), found.end(), line.second) == found.end()) {
      found.push_back(line.second);
    }
  }
  return found;
}

std::string TensorRtLog::said() const {
  constexpr size_t kShown = 3;
  std::vector<std::string> all = errors();
  if (all.empty()) all = warnings();  // why CUDA does not start is a warning
  std::string text;
  for (size_t i = all.size() > kShown ? all.size() - kShown : 0; i < all.size(); ++i) {
    text += (text.empty() ? ": " : "; ") + all[i];
  }
  return text;
}

TensorRt& TensorRt::get(const std::string& named) {
  // Never freed: TensorRT keeps the logger until the process ends.
  static TensorRt* tensorrt = new TensorRt(named);
  return *tensorrt;
}

TensorRt::TensorRt(const std::string& named)
    : library_(library_names(named, "TLC_TENSORRT_LIB", {numbered("libnvinfer")}), "TensorRT", kWhereToGet) {
  const std::vector<int> numbers = numbers_of(library_.function<int32_t()>("getInferLibVersion")());
  version_ = dotted(numbers);
  if (numbers[0] != NV_TENSORRT_MAJOR || numbers[1] < NV_TENSORRT_MINOR) {
    throw Error("this tlc-run was compiled for TensorRT " + dotted({NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR}) +
                    " and later of the same major version, and " + library_.path() + " is " + version_,
                kBuildAgain);
  }
  register_plugins();
}

// Engines and ONNX files may use layers of this library. Most do not, so its absence is a warning that is kept.
void TensorRt::register_plugins() {
  try {
    const Library plugins(sibling("libnvinfer_plugin"), "TensorRT's plugins", kWhereToGet);
    plugins.function<bool(void*, const char*)>("initLibNvInferPlugins")(static_cast<nvinfer1::ILogger*>(&log_), "");
  } catch (const Error& error) {
    log_.log(nvinfer1::ILogger::Severity::kWARNING, error.what());
  }
}

std::vector<std::string> TensorRt::sibling(const std::string& stem) const {
  const size_t slash = library_.path().rfind('/');
  const std::string folder = slash == std::string::npos ? "" : library_.path().substr(0, slash + 1);
  return {folder + numbered(stem), folder + stem + ".so", numbered(stem)};
}

std::unique_ptr<nvinfer1::IRuntime> TensorRt::make_runtime() {
  const auto create = library_.function<void*(void*, int32_t)>("createInferRuntime_INTERNAL");
  void* runtime = create(static_cast<nvinfer1::ILogger*>(&log_), NV_TENSORRT_VERSION);
  if (runtime == nullptr) {
    throw Error("TensorRT " + version_ + " cannot start" + log_.said(), "Check the driver with nvidia-smi.");
  }
  return std::unique_ptr<nvinfer1::IRuntime>(static_cast<nvinfer1::IRuntime*>(runtime));
}

std::unique_ptr<nvinfer1::IBuilder> TensorRt::make_builder() {
  const auto create = library_.find<void*(void*, int32_t)>("createInferBuilder_INTERNAL");
  if (create == nullptr) {
    throw Error("TensorRT " + version_ + " is here without its builder: that is the lean runtime",
                "Install the full package, in the release that the target names.");
  }
  void* builder = create(static_cast<nvinfer1::ILogger*>(&log_), NV_TENSORRT_VERSION);
  if (builder == nullptr) {
    throw Error("TensorRT " + version_ + " cannot start its builder" + log_.said(),
                "Check the driver with nvidia-smi.");
  }
  return std::unique_ptr<nvinfer1::IBuilder>(static_cast<nvinfer1::IBuilder*>(builder));
}

std::unique_ptr<nvinfer1::ICudaEngine> load_engine(TensorRt& tensorrt, nvinfer1::IRuntime& runtime,
                                                   const std::string& plan, const std::string& name, bool host_code,
                                                   int dla_core) {
  if (host_code) {
#if TLC_TENSORRT_FROM(8, 6)
    runtime.setEngineHostCodeAllowed(true);
#else
    throw Error(name + " is a version-compatible plan, and TensorRT " + tensorrt.version() + " cannot load one",
                "Version-compatible plans run from TensorRT 8.6 on: build without --version-compatible.");
#endif
  }
  if (dla_core >= 0) runtime.setDLACore(dla_core);
  tensorrt.log().clear();
  std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime.deserializeCudaEngine(plan.data(), plan.size()));
  if (engine == nullptr) {
    throw Error("TensorRT " + tensorrt.version() + " refuses " + name + tensorrt.log().said(),
                "Plans fit one release and one kind of GPU: build it again here with tlc-run build.");
  }
  return engine;
}

Shape shape_of(const nvinfer1::Dims& dims) { return Shape(dims.d, dims.d + std::max<int32_t>(dims.nbDims, 0)); }

nvinfer1::Dims dims_of(const Shape& shape) {
  nvinfer1::Dims dims{};
  if (shape.size() > static_cast<size_t>(nvinfer1::Dims::MAX_DIMS)) {
    throw Error("[" + shape_text(shape) + "] has " + std::to_string(shape.size()) +
                    " dimensions, and TensorRT has at "
                    "most " +
                    std::to_string(nvinfer1::Dims::MAX_DIMS),
                "Export the model with fewer dimensions.");
  }
  dims.nbDims = static_cast<int32_t>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) dims.d[i] = static_cast<std::decay_t<decltype(dims.d[0])>>(shape[i]);
  return dims;
}

DType dtype_of(nvinfer1::DataType dtype, const std::string& tensor) {
  switch (dtype) {
    case nvinfer1::DataType::kFLOAT:
      return DType::kFloat32;
    case nvinfer1::DataType::kHALF:
      return DType::kFloat16;
    case nvinfer1::DataType::kINT8:
      return DType::kInt8;
    case nvinfer1::DataType::kINT32:
      return DType::kInt32;
    case nvinfer1::DataType::kBOOL:
      return DType::kBool;
#if TLC_TENSORRT_FROM(8, 5)
    case nvinfer1::DataType::kUINT8:
      return DType::kUint8;
#endif
#if TLC_TENSORRT_FROM(10, 0)
    case nvinfer1::DataType::kINT64:
      return DType::kInt64;
#endif
    default:
      throw Error("the engine's tensor " + tensor + " has TensorRT's type " +
                      std::to_string(static_cast<int32_t>(dtype)) +
                      ", and only float32, float16, int8, uint8, int32, int64 and bool are supported at its boundary",
                  "Keep inputs and outputs in float32 when exporting.");
  }
}

}  // namespace tlc
