#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <map>
#include <sstream>

#include "cudart.h"
#include "tensorrt.h"

namespace {

using namespace nvinfer1;

constexpr long long kMib = 1 << 20;

bool is_open(const Dims& dims) {
  return std::any_of(dims.d, dims.d + dims.nbDims, [](long long dim) { return dim < 0; });
}

size_t bytes_of(DataType dtype, const Dims& dims) {
  size_t count = dtype == DataType::kFLOAT || dtype == DataType::kINT32 ? 4 : dtype == DataType::kHALF ? 2 : 1;
#if TLC_INTERFACE_FROM(10, 0)
  if (dtype == DataType::kINT64) count = 8;
#endif
  for (int32_t i = 0; i < dims.nbDims; ++i) count *= static_cast<size_t>(dims.d[i]);
  return count;
}

std::string text_of(const Dims& dims) {
  std::string text;
  for (int32_t i = 0; i < dims.nbDims; ++i) text += " " + std::to_string(dims.d[i]);
  return text;
}

Dims dims_of(std::istringstream& words) {
  Dims dims{};
  long long dim = 0;
  while (words >> dim) dims.d[dims.nbDims++] = static_cast<std::decay_t<decltype(dims.d[0])>>(dim);
  return dims;
}

struct Bytes : IHostMemory {
  explicit Bytes(std::string text) : bytes(std::move(text)) {}
  std::string bytes;
  void* data() const noexcept override { return const_cast<char*>(bytes.data()); }
  std::size_t size() const noexcept override { return bytes.size(); }
};

struct Profile : IOptimizationProfile {
  std::map<std::string, std::array<Dims, 3>> shapes;
  bool setDimensions(const char* name, OptProfileSelector select, const Dims& dims) noexcept override {
    shapes[name][static_cast<size_t>(select)] = dims;
    return true;
  }
};

struct Timings : ITimingCache {
  std::string bytes;
  IHostMemory* serialize() const noexcept override { return new Bytes(bytes + "timings\n"); }
};

struct Config : IBuilderConfig {
  std::map<std::string, long long> said;  // by what it was asked for
  const Profile* profile = nullptr;
  const Timings* timings = nullptr;

  void setProfilingVerbosity(ProfilingVerbosity verbosity) noexcept override {
    said["verbosity"] = static_cast<int>(verbosity);
  }
#if !TLC_INTERFACE_FROM(11, 0)
  void setFlag(BuilderFlag flag) noexcept override { said[flag == BuilderFlag::kFP16 ? "fp16" : "int8"] = 1; }
#endif
#if TLC_INTERFACE_FROM(8, 4)
  void setMemoryPoolLimit(MemoryPoolType pool, std::size_t size) noexcept override {
    said[pool == MemoryPoolType::kWORKSPACE ? "workspace" : "tactic_dram"] = static_cast<long long>(size);
  }
#else
  void setMaxWorkspaceSize(std::size_t size) noexcept override { said["workspace"] = static_cast<long long>(size); }
#endif
#if TLC_INTERFACE_FROM(8, 6)
  void setBuilderOptimizationLevel(int32_t level) noexcept override { said["level"] = level; }
#if TLC_INTERFACE_FROM(11, 0)
  bool setMaxAuxStreams(int32_t streams) noexcept override {
    said["aux_streams"] = streams;
    return true;
  }
#else
  void setMaxAuxStreams(int32_t streams) noexcept override { said["aux_streams"] = streams; }
#endif
#endif
  int32_t addOptimizationProfile(const IOptimizationProfile* added) noexcept override {
    profile = static_cast<const Profile*>(added);
    for (const auto& entry : profile->shapes) {
      for (int32_t i = 0; i < entry.second[0].nbDims; ++i) {
        if (entry.second[0].d[i] > entry.second[1].d[i] || entry.second[1].d[i] > entry.second[2].d[i]) return -1;
      }
    }
    return 0;
  }
  ITimingCache* createTimingCache(const void* bytes, std::size_t size) const noexcept override {
    auto* made = new Timings;
    made->bytes.assign(static_cast<const char*>(bytes), size);
    return made;
  }
  bool setTimingCache(const ITimingCache& cache, bool) noexcept override {
    timings = static_cast<const Timings*>(&cache);
    return timings->bytes.empty() || timings->bytes.rfind("timings", 0) == 0;
  }
  const ITimingCache* getTimingCache() const noexcept override { return timings; }
};

// The plan: a header as TensorRT's, then lines of text.
struct Engine;

struct RunContext : IExecutionContext {
  explicit RunContext(const Engine& its) : engine(its) {}
  const Engine& engine;
  std::map<std::string, Dims> shapes;
  std::map<std::string, void*> addresses;

  Dims shape(const std::string& name) const;
  bool set_shape(const std::string& name, const Dims& dims);
  bool run(void* stream);

#if TLC_INTERFACE_FROM(8, 5)
  bool setInputShape(const char* name, const Dims& dims) noexcept override { return set_shape(name, dims); }
  Dims getTensorShape(const char* name) const noexcept override { return shape(name); }
  bool setTensorAddress(const char* name, void* address) noexcept override {
    addresses[name] = address;
    return true;
  }
  bool enqueueV3(cudaStream_t stream) noexcept override { return run(stream); }
#else
  bool setBindingDimensions(int32_t index, Dims dims) noexcept override;
  Dims getBindingDimensions(int32_t index) const noexcept override;
  bool enqueueV2(void* const* bindings, cudaStream_t stream, cudaEvent_t*) noexcept override;
#endif
};

struct Engine : ICudaEngine {
  std::vector<DoubleTensor> tensors;
  std::map<std::string, std::array<Dims, 3>> profile;

  const DoubleTensor& tensor(const std::string& name) const {
    return *std::find_if(tensors.begin(), tensors.end(), [&](const DoubleTensor& each) { return each.name == name; });
  }
  IExecutionContext* createExecutionContext() noexcept override { return new RunContext(*this); }
#if TLC_INTERFACE_FROM(8, 5)
  int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(tensors.size()); }
  const char* getIOTensorName(int32_t index) const noexcept override {
    return tensors[static_cast<size_t>(index)].name.c_str();
  }
  Dims getTensorShape(const char* name) const noexcept override { return tensor(name).dims; }
  DataType getTensorDataType(const char* name) const noexcept override { return tensor(name).dtype; }
  TensorIOMode getTensorIOMode(const char* name) const noexcept override {
    return tensor(name).is_input ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
  }
  Dims getProfileShape(const char* name, int32_t, OptProfileSelector select) const noexcept override {
    return profile.at(name)[static_cast<size_t>(select)];
  }
#else
  const DoubleTensor& at(int32_t index) const { return tensors[static_cast<size_t>(index)]; }
  int32_t getNbBindings() const noexcept override { return static_cast<int32_t>(tensors.size()); }
  const char* getBindingName(int32_t index) const noexcept override { return at(index).name.c_str(); }
  Dims getBindingDimensions(int32_t index) const noexcept override { return at(index).dims; }
  DataType getBindingDataType(int32_t index) const noexcept override { return at(index).dtype; }
  bool bindingIsInput(int32_t index) const noexcept override { return at(index).is_input; }
  Dims getProfileDimensions(int32_t index, int32_t, OptProfileSelector select) const noexcept override {
    return profile.at(at(index).name)[static_cast<size_t>(select)];
  }
#endif
#if TLC_INTERFACE_FROM(10, 1)
  int64_t getDeviceMemorySizeV2() const noexcept override { return 4096; }
#else
  std::size_t getDeviceMemorySize() const noexcept override { return 4096; }
#endif
};

Dims RunContext::shape(const std::string& name) const {
  const auto known = shapes.find(name);
  if (known != shapes.end()) return known->second;
  Dims dims = engine.tensor(name).dims;
  const std::string first = engine.tensors[0].name;
  const auto fed = shapes.find(first);
  for (int32_t i = 0; i < dims.nbDims && fed != shapes.end(); ++i) {
    if (dims.d[i] < 0) dims.d[i] = fed->second.d[i];
  }
  return dims;
}

bool RunContext::set_shape(const std::string& name, const Dims& dims) {
  const Dims declared = engine.tensor(name).dims;
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    if (dims.nbDims != declared.nbDims || (declared.d[i] >= 0 && declared.d[i] != dims.d[i])) return false;
  }
  shapes[name] = dims;
  return true;
}

// The outputs are the inputs without what is below 0, in turns; other types are copied.
bool RunContext::run(void* stream) {
  if (behaves("no-enqueue") >= 0) return false;
  std::vector<const DoubleTensor*> inputs;
  for (const DoubleTensor& tensor : engine.tensors) {
    if (tensor.is_input) inputs.push_back(&tensor);
  }
  size_t turn = 0;
  for (const DoubleTensor& output : engine.tensors) {
    if (output.is_input) continue;
    const DoubleTensor& input = *inputs[turn++ % inputs.size()];
    const void* from = addresses.at(input.name);
    void* to = addresses.at(output.name);
    const size_t bytes = std::min(bytes_of(input.dtype, shape(input.name)), bytes_of(output.dtype, shape(output.name)));
    const bool floats = input.dtype == DataType::kFLOAT && output.dtype == DataType::kFLOAT;
    double_submit(stream, [=] {
      if (!floats) {
        std::memcpy(to, from, bytes);
        return;
      }
      for (size_t i = 0; i < bytes / 4; ++i) {
        const float value = static_cast<const float*>(from)[i];
        static_cast<float*>(to)[i] = value > 0 ? value : 0;
      }
    });
  }
  return true;
}

#if !TLC_INTERFACE_FROM(8, 5)
bool RunContext::setBindingDimensions(int32_t index, Dims dims) noexcept {
  return set_shape(engine.at(index).name, dims);
}
Dims RunContext::getBindingDimensions(int32_t index) const noexcept { return shape(engine.at(index).name); }
bool RunContext::enqueueV2(void* const* bindings, cudaStream_t stream, cudaEvent_t*) noexcept {
  for (size_t i = 0; i < engine.tensors.size(); ++i) addresses[engine.tensors[i].name] = bindings[i];
  return run(stream);
}
#endif

std::string header() {
  std::string bytes = "ftrt" + std::string(24, '\0');
#if TLC_INTERFACE_FROM(10, 0)
  bytes[24] = NV_TENSORRT_MAJOR;
  bytes[25] = NV_TENSORRT_MINOR;
  bytes[27] = 7;
#endif
  return bytes;
}

struct Builder : IBuilder {
  explicit Builder(ILogger& its) : logger(its) {}
  ~Builder() override {
    for (Profile* profile : profiles) delete profile;
  }
  ILogger& logger;
  std::vector<Profile*> profiles;

  INetworkDefinition* createNetworkV2(uint32_t flags) noexcept override {
    auto* network = new DoubleNetwork;
    network->flags = flags;
    return network;
  }
  IBuilderConfig* createBuilderConfig() noexcept override { return new Config; }
  IOptimizationProfile* createOptimizationProfile() noexcept override {
    profiles.push_back(new Profile);
    return profiles.back();
  }
  IHostMemory* buildSerializedNetwork(INetworkDefinition& defined, IBuilderConfig& configured) noexcept override {
    const auto& network = static_cast<const DoubleNetwork&>(defined);
    const auto& config = static_cast<const Config&>(configured);
    const auto asked = config.said.find("workspace");
    const long long workspace = asked == config.said.end() ? 0 : asked->second;
    if (behaves("crash") >= 0) raise(SIGSEGV);
    if (behaves("kill-above") >= 0 && workspace > behaves("kill-above") * kMib) raise(SIGKILL);
    if (behaves("memory-above") >= 0 && workspace > behaves("memory-above") * kMib) {
      logger.log(ILogger::Severity::kERROR,
                 "Tactic Device request: 4229MB Available: 2658MB. Device memory is "
                 "insufficient to use tactic.");
      return nullptr;
    }
    if (behaves("kernel-below") >= 0 && workspace < behaves("kernel-below") * kMib) {
      logger.log(ILogger::Severity::kERROR, "Could not find any implementation for node conv1.");
      return nullptr;
    }
    logger.log(ILogger::Severity::kINFO, "not kept");
    logger.log(ILogger::Severity::kWARNING, "Weights [name=w] have subnormal values");
    std::string text = header() + "network " + std::to_string(network.flags) + "\n";
    for (const auto& entry : config.said) text += "config " + entry.first + " " + std::to_string(entry.second) + "\n";
    for (const auto* tensors : {&network.inputs, &network.outputs}) {
      for (const DoubleTensor& tensor : *tensors) {
        if (is_open(tensor.dims) && tensor.is_input && config.profile == nullptr) {
          logger.log(ILogger::Severity::kERROR, "no optimization profile has been defined");
          return nullptr;
        }
        text += "tensor " + tensor.name + " " + (tensor.is_input ? "1 " : "0 ") +
                std::to_string(static_cast<int>(tensor.dtype)) + text_of(tensor.dims) + "\n";
      }
    }
    if (config.profile != nullptr) {
      for (const auto& entry : config.profile->shapes) {
        for (const Dims& dims : entry.second) text += "profile " + entry.first + text_of(dims) + "\n";
      }
    }
    return new Bytes(text);
  }
};

struct Runtime : IRuntime {
  explicit Runtime(ILogger& its) : logger(its) {}
  ILogger& logger;

  ICudaEngine* deserializeCudaEngine(const void* plan, std::size_t size) noexcept override {
    const std::string text(static_cast<const char*>(plan), size);
    if (text.substr(0, 28) != header()) {
      logger.log(ILogger::Severity::kERROR, "The engine plan file is not compatible with this version of TensorRT");
      return nullptr;
    }
    auto* engine = new Engine;
    std::istringstream lines(text.substr(28));
    std::map<std::string, size_t> turns;
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string kind, name;
      words >> kind >> name;
      if (kind == "tensor") {
        DoubleTensor tensor;
        int dtype = 0;
        words >> tensor.is_input >> dtype;
        tensor.name = name;
        tensor.dtype = static_cast<DataType>(dtype);
        tensor.dims = dims_of(words);
        engine->tensors.push_back(tensor);
      } else if (kind == "profile") {
        engine->profile[name][turns[name]++] = dims_of(words);
      }
    }
    return engine;
  }
  void setDLACore(int32_t) noexcept override {}
#if TLC_INTERFACE_FROM(8, 6)
  void setEngineHostCodeAllowed(bool) noexcept override {}
#endif
};

}  // namespace

DOUBLE_API int32_t getInferLibVersion() noexcept { return behaves("other-version") >= 0 ? 9900 : NV_TENSORRT_VERSION; }
DOUBLE_API void* createInferRuntime_INTERNAL(void* logger, int32_t) noexcept {
  return static_cast<IRuntime*>(new Runtime(*static_cast<ILogger*>(logger)));
}
DOUBLE_API void* createInferBuilder_INTERNAL(void* logger, int32_t) noexcept {
  return static_cast<IBuilder*>(new Builder(*static_cast<ILogger*>(logger)));
}
