// The part of TensorRT's C++ interface that tlc-run calls, by its documented names and signatures, for compiling and
// testing where TensorRT is not. It is this project's own: not binary compatible with TensorRT, whose functions are in
// another order. NV_TENSORRT_MAJOR and NV_TENSORRT_MINOR choose the release; what a release lacks is not declared.
// https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/c-api/
#ifndef TLC_TESTS_NVINFER_H_
#define TLC_TESTS_NVINFER_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#ifndef NV_TENSORRT_MAJOR
#define NV_TENSORRT_MAJOR 10
#define NV_TENSORRT_MINOR 3
#endif
#define NV_TENSORRT_PATCH 0

#if NV_TENSORRT_MAJOR >= 10
#define NV_TENSORRT_VERSION (NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH)
#else
#define NV_TENSORRT_VERSION (NV_TENSORRT_MAJOR * 1000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH)
#endif

#define TLC_INTERFACE_FROM(major, minor) \
  (NV_TENSORRT_MAJOR > (major) || (NV_TENSORRT_MAJOR == (major) && NV_TENSORRT_MINOR >= (minor)))

namespace nvinfer1 {

enum class DataType : int32_t {
  kFLOAT = 0,
  kHALF = 1,
  kINT8 = 2,
  kINT32 = 3,
  kBOOL = 4,
#if TLC_INTERFACE_FROM(8, 5)
  kUINT8 = 5,
#endif
#if TLC_INTERFACE_FROM(10, 0)
  kINT64 = 8,
#endif
};

struct Dims {
  static constexpr int32_t MAX_DIMS = 8;
  int32_t nbDims;
#if TLC_INTERFACE_FROM(10, 0)
  int64_t d[MAX_DIMS];
#else
  int32_t d[MAX_DIMS];
#endif
};

class ILogger {
 public:
  enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
  virtual ~ILogger() = default;
  virtual void log(Severity severity, const char* message) noexcept = 0;
};

class IHostMemory {
 public:
  virtual ~IHostMemory() = default;
  virtual void* data() const noexcept = 0;
  virtual std::size_t size() const noexcept = 0;
};

enum class OptProfileSelector : int32_t { kMIN = 0, kOPT = 1, kMAX = 2 };

#if TLC_INTERFACE_FROM(8, 5)
enum class TensorIOMode : int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
#endif

class IExecutionContext {
 public:
  virtual ~IExecutionContext() = default;
#if TLC_INTERFACE_FROM(8, 5)
  virtual bool setInputShape(const char* name, const Dims& dims) noexcept = 0;
  virtual Dims getTensorShape(const char* name) const noexcept = 0;
  virtual bool setTensorAddress(const char* name, void* address) noexcept = 0;
  virtual bool enqueueV3(cudaStream_t stream) noexcept = 0;
#else
  virtual bool setBindingDimensions(int32_t index, Dims dims) noexcept = 0;
  virtual Dims getBindingDimensions(int32_t index) const noexcept = 0;
  virtual bool enqueueV2(void* const* bindings, cudaStream_t stream, cudaEvent_t* consumed) noexcept = 0;
#endif
};

class ICudaEngine {
 public:
  virtual ~ICudaEngine() = default;
  virtual IExecutionContext* createExecutionContext() noexcept = 0;
#if TLC_INTERFACE_FROM(8, 5)
  virtual int32_t getNbIOTensors() const noexcept = 0;
  virtual const char* getIOTensorName(int32_t index) const noexcept = 0;
  virtual Dims getTensorShape(const char* name) const noexcept = 0;
  virtual DataType getTensorDataType(const char* name) const noexcept = 0;
  virtual TensorIOMode getTensorIOMode(const char* name) const noexcept = 0;
  virtual Dims getProfileShape(const char* name, int32_t profile, OptProfileSelector select) const noexcept = 0;
#else
  virtual int32_t getNbBindings() const noexcept = 0;
  virtual const char* getBindingName(int32_t index) const noexcept = 0;
  virtual Dims getBindingDimensions(int32_t index) const noexcept = 0;
  virtual DataType getBindingDataType(int32_t index) const noexcept = 0;
  virtual bool bindingIsInput(int32_t index) const noexcept = 0;
  virtual Dims getProfileDimensions(int32_t index, int32_t profile, OptProfileSelector select) const noexcept = 0;
#endif
#if TLC_INTERFACE_FROM(10, 1)
  virtual int64_t getDeviceMemorySizeV2() const noexcept = 0;
#else
  virtual std::size_t getDeviceMemorySize() const noexcept = 0;
#endif
};

class IRuntime {
 public:
  virtual ~IRuntime() = default;
  virtual ICudaEngine* deserializeCudaEngine(const void* plan, std::size_t size) noexcept = 0;
  virtual void setDLACore(int32_t core) noexcept = 0;
#if TLC_INTERFACE_FROM(8, 6)
  virtual void setEngineHostCodeAllowed(bool allowed) noexcept = 0;
#endif
};

class ITensor {
 public:
  virtual ~ITensor() = default;
  virtual const char* getName() const noexcept = 0;
  virtual Dims getDimensions() const noexcept = 0;
  virtual bool isShapeTensor() const noexcept = 0;
};

class INetworkDefinition {
 public:
  virtual ~INetworkDefinition() = default;
  virtual int32_t getNbInputs() const noexcept = 0;
  virtual ITensor* getInput(int32_t index) const noexcept = 0;
};

class IOptimizationProfile {
 public:
  virtual ~IOptimizationProfile() = default;
  virtual bool setDimensions(const char* name, OptProfileSelector select, const Dims& dims) noexcept = 0;
};

class ITimingCache {
 public:
  virtual ~ITimingCache() = default;
  virtual IHostMemory* serialize() const noexcept = 0;
};

enum class ProfilingVerbosity : int32_t { kLAYER_NAMES_ONLY = 0, kNONE = 1, kDETAILED = 2 };

#if !TLC_INTERFACE_FROM(11, 0)
enum class BuilderFlag : int32_t { kFP16 = 0, kINT8 = 1 };
#endif

enum class NetworkDefinitionCreationFlag : int32_t {
#if TLC_INTERFACE_FROM(11, 0)
  kSTRONGLY_TYPED = 0,
#else
  kEXPLICIT_BATCH = 0,
#if TLC_INTERFACE_FROM(10, 0)
  kSTRONGLY_TYPED = 1,
#endif
#endif
};

#if TLC_INTERFACE_FROM(8, 4)
enum class MemoryPoolType : int32_t {
  kWORKSPACE = 0,
#if TLC_INTERFACE_FROM(8, 6)
  kTACTIC_DRAM = 4,
#endif
};
#endif

class IBuilderConfig {
 public:
  virtual ~IBuilderConfig() = default;
  virtual void setProfilingVerbosity(ProfilingVerbosity verbosity) noexcept = 0;
#if !TLC_INTERFACE_FROM(11, 0)
  virtual void setFlag(BuilderFlag flag) noexcept = 0;
#endif
#if TLC_INTERFACE_FROM(8, 4)
  virtual void setMemoryPoolLimit(MemoryPoolType pool, std::size_t size) noexcept = 0;
#else
  virtual void setMaxWorkspaceSize(std::size_t size) noexcept = 0;
#endif
#if TLC_INTERFACE_FROM(8, 6)
  virtual void setBuilderOptimizationLevel(int32_t level) noexcept = 0;
#if TLC_INTERFACE_FROM(11, 0)
  virtual bool setMaxAuxStreams(int32_t streams) noexcept = 0;
#else
  virtual void setMaxAuxStreams(int32_t streams) noexcept = 0;
#endif
#endif
  virtual int32_t addOptimizationProfile(const IOptimizationProfile* profile) noexcept = 0;
  virtual ITimingCache* createTimingCache(const void* bytes, std::size_t size) const noexcept = 0;
  virtual bool setTimingCache(const ITimingCache& cache, bool ignore_mismatch) noexcept = 0;
  virtual const ITimingCache* getTimingCache() const noexcept = 0;
};

class IBuilder {
 public:
  virtual ~IBuilder() = default;
  virtual INetworkDefinition* createNetworkV2(uint32_t flags) noexcept = 0;
  virtual IBuilderConfig* createBuilderConfig() noexcept = 0;
  virtual IOptimizationProfile* createOptimizationProfile() noexcept = 0;
  virtual IHostMemory* buildSerializedNetwork(INetworkDefinition& network, IBuilderConfig& config) noexcept = 0;
};

}  // namespace nvinfer1

#endif  // TLC_TESTS_NVINFER_H_
