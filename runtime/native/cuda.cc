#include "cuda.h"

#include <glob.h>

#include <cstdlib>
#include <vector>

#include "error.h"

namespace tlc {

namespace {

constexpr int kHostToDevice = 1;  // cudaMemcpyKind
constexpr int kDeviceToHost = 2;
constexpr int kMajor = 75;  // cudaDeviceAttr: compute capability, and whether memory is shared with the CPU
constexpr int kMinor = 76;
constexpr int kIntegrated = 18;
constexpr unsigned kNonBlocking = 1;  // cudaStreamNonBlocking
constexpr int kThreadLocal = 1;       // cudaStreamCaptureModeThreadLocal: other threads may go on using CUDA
// cudaDeviceProp begins with the name in every release; the rest differs in layout and grows, so it is not read.
constexpr size_t kNameBytes = 256;
constexpr size_t kPropertiesBytes = 16384;

constexpr char kWhereToGet[] =
    "Install the NVIDIA driver and CUDA runtime, or name the library: TLC_CUDART=/path/to/libcudart.so.12";

std::string hint_for(const std::string& text) {
  if (text.find("out of memory") != std::string::npos) {
    return "Stop what else uses the GPU's memory, or run a smaller batch.";
  }
  if (text.find("driver") != std::string::npos || text.find("no CUDA-capable device") != std::string::npos) {
    return "Check the driver with nvidia-smi; in a container, pass the GPU through (--gpus all, or --runtime nvidia).";
  }
  return "Check that the GPU works: nvidia-smi, or on a Jetson tegrastats.";
}

std::vector<std::string> candidates() {
  const char* named = std::getenv("TLC_CUDART");
  if (named != nullptr && *named != '\0') return {named};
  std::vector<std::string> names = {"libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0",
                                    "libcudart.so.10.2"};
  glob_t found{};
  if (glob("/usr/local/cuda/lib64/libcudart.so*", 0, nullptr, &found) == 0) {
    names.insert(names.end(), found.gl_pathv, found.gl_pathv + found.gl_pathc);
  }
  globfree(&found);
  return names;
}

// Return the first library that finds a GPU; throws what a library that loads says, else why the first does not load.
std::unique_ptr<Cuda> load() {
  std::unique_ptr<Error> loading, working;
  for (const std::string& name : candidates()) {
    std::unique_ptr<Cuda> cuda;
    try {
      cuda = std::make_unique<Cuda>(name);
    } catch (const Error& error) {
      if (loading == nullptr) loading = std::make_unique<Error>(error);
      continue;
    }
    try {
      cuda->device();
      return cuda;
    } catch (const Error& error) {
      if (working == nullptr) working = std::make_unique<Error>(error);
    }
  }
  const Error& failure = working == nullptr ? *loading : *working;
  throw Error("no NVIDIA GPU: " + std::string(failure.what()), failure.hint);
}

}  // namespace

const Cuda& Cuda::get() {
  static const Cuda* cuda = load().release();  // never freed: memory is given back through it until the very end
  return *cuda;
}

Cuda::Cuda(const std::string& library) : library_({library}, "the CUDA runtime library", kWhereToGet) {}

void Cuda::fail(const char* name, int status) const {
  const auto describe = library_.function<const char*(int)>("cudaGetErrorString");
  const char* text = describe(status);
  const std::string words = text == nullptr ? "?" : text;
  throw Error("CUDA: " + std::string(name) + ": " + words + " (error " + std::to_string(status) + ")", hint_for(words));
}

// Call a function of the library by its name, whose parameter types are given.
#define TLC_CUDA(name, types, ...) call(#name, library_.function<int types>(#name), __VA_ARGS__)

int Cuda::attribute(int number) const {
  int value = 0;
  TLC_CUDA(cudaDeviceGetAttribute, (int*, int, int), &value, number, 0);
  return value;
}

CudaDevice Cuda::device() const {
  int count = 0;
  TLC_CUDA(cudaGetDeviceCount, (int*), &count);
  if (count == 0) throw Error("CUDA counts no device", hint_for("driver"));
  std::vector<char> properties(kPropertiesBytes);
  TLC_CUDA(cudaGetDeviceProperties, (void*, int), static_cast<void*>(properties.data()), 0);
  properties[kNameBytes - 1] = '\0';
  TLC_CUDA(cudaSetDevice, (int), 0);
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  TLC_CUDA(cudaMemGetInfo, (size_t*, size_t*), &free_bytes, &total_bytes);
  CudaDevice device;
  device.name = properties.data();
  device.sm = std::to_string(attribute(kMajor)) + "." + std::to_string(attribute(kMinor));
  device.integrated = attribute(kIntegrated) != 0;
  device.free_bytes = static_cast<int64_t>(free_bytes);
  device.total_bytes = static_cast<int64_t>(total_bytes);
  return device;
}

void* Cuda::malloc(size_t size_bytes) const {
  void* memory = nullptr;
  TLC_CUDA(cudaMalloc, (void**, size_t), &memory, size_bytes);
  return memory;
}

void* Cuda::malloc_host(size_t size_bytes) const {
  void* memory = nullptr;
  TLC_CUDA(cudaMallocHost, (void**, size_t), &memory, size_bytes);
  return memory;
}

void Cuda::free(void* memory) const { library_.function<int(void*)>("cudaFree")(memory); }

void Cuda::free_host(void* memory) const { library_.function<int(void*)>("cudaFreeHost")(memory); }

void Cuda::copy_to_device(void* device, const void* host, size_t size_bytes, void* stream) const {
  TLC_CUDA(cudaMemcpyAsync, (void*, const void*, size_t, int, void*), device, host, size_bytes, kHostToDevice, stream);
}

void Cuda::copy_to_host(void* host, const void* device, size_t size_bytes, void* stream) const {
  TLC_CUDA(cudaMemcpyAsync, (void*, const void*, size_t, int, void*), host, device, size_bytes, kDeviceToHost, stream);
}

void* Cuda::create_stream() const {
  void* stream = nullptr;
  TLC_CUDA(cudaStreamCreateWithFlags, (void**, unsigned), &stream, kNonBlocking);
  return stream;
}

void Cuda::synchronize(void* stream) const { TLC_CUDA(cudaStreamSynchronize, (void*), stream); }

void Cuda::destroy_stream(void* stream) const { library_.function<int(void*)>("cudaStreamDestroy")(stream); }

void Cuda::begin_capture(void* stream) const { TLC_CUDA(cudaStreamBeginCapture, (void*, int), stream, kThreadLocal); }

void* Cuda::end_capture(void* stream) const {
  void* graph = nullptr;
  TLC_CUDA(cudaStreamEndCapture, (void*, void**), stream, &graph);
  return graph;
}

// cudaGraphInstantiate changed its parameters in CUDA 12; cudaGraphInstantiateWithFlags, from 11.4 on, did not.
void* Cuda::instantiate(void* graph) const {
  void* executable = nullptr;
  constexpr char kWithFlags[] = "cudaGraphInstantiateWithFlags";
  if (const auto with_flags = library_.find<int(void**, void*, unsigned long long)>(kWithFlags)) {
    call(kWithFlags, with_flags, &executable, graph, 0ULL);
  } else {
    TLC_CUDA(cudaGraphInstantiate, (void**, void*, void*, void*, size_t), &executable, graph, nullptr, nullptr,
             size_t{0});
  }
  return executable;
}

void Cuda::launch(void* executable, void* stream) const {
  TLC_CUDA(cudaGraphLaunch, (void*, void*), executable, stream);
}

void Cuda::destroy_graph(void* graph) const { library_.function<int(void*)>("cudaGraphDestroy")(graph); }

void Cuda::destroy_executable(void* executable) const {
  library_.function<int(void*)>("cudaGraphExecDestroy")(executable);
}

#undef TLC_CUDA

}  // namespace tlc
