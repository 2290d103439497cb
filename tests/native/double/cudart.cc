// A stand-in for CUDA's runtime on machines without a GPU: memory is the CPU's, and what is queued runs at once, or
// becomes part of the graph that is being captured. TLC_DOUBLE_CUDA says how it behaves: "no-gpu", "old-driver",
// "no-capture" or "integrated". Memory that is not given back is told at the end when TLC_DOUBLE_LEAKS is set.
#include "cudart.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <string>

namespace {

constexpr int kNoDevice = 100;
constexpr int kOldDriver = 35;
constexpr int kOutOfMemory = 2;
constexpr int kNotPermitted = 800;
constexpr size_t kMemoryBytes = size_t{8} << 30;

bool behaves(const char* how) {
  const char* text = std::getenv("TLC_DOUBLE_CUDA");
  return text != nullptr && std::strcmp(text, how) == 0;
}

struct Graph {
  std::vector<std::function<void()>> work;
};

struct Stream {
  Graph* capturing = nullptr;
};

// What was given out and has to come back.
struct Given {
  std::mutex mutex;
  std::set<void*> alive;
  ~Given() {
    if (std::getenv("TLC_DOUBLE_LEAKS") == nullptr || alive.empty()) return;
    std::fprintf(stderr, "LEAK: %zu objects of CUDA were not given back\n", alive.size());
    std::_Exit(99);
  }
};

Given given;

int give(void* object, void** out) {
  if (object == nullptr) return kOutOfMemory;
  const std::lock_guard<std::mutex> lock(given.mutex);
  given.alive.insert(object);
  *out = object;
  return 0;
}

void forget(void* object) {
  const std::lock_guard<std::mutex> lock(given.mutex);
  if (given.alive.erase(object) != 0) return;
  std::fprintf(stderr, "DOUBLE FREE: %p\n", object);
  std::_Exit(98);
}

template <typename T>
int take_back(void* object) {
  forget(object);
  delete static_cast<T*>(object);
  return 0;
}

int free_memory(void* memory) {
  forget(memory);
  std::free(memory);
  return 0;
}

}  // namespace

void double_submit(void* stream, std::function<void()> work) {
  Graph* graph = static_cast<Stream*>(stream)->capturing;
  if (graph == nullptr) {
    work();
  } else {
    graph->work.push_back(std::move(work));
  }
}

#define DOUBLE_API extern "C" __attribute__((visibility("default")))

DOUBLE_API int cudaGetDeviceCount(int* count) {
  *count = 1;
  return behaves("no-gpu") ? kNoDevice : behaves("old-driver") ? kOldDriver : 0;
}
DOUBLE_API const char* cudaGetErrorString(int status) {
  switch (status) {
    case kNoDevice:
      return "no CUDA-capable device is detected";
    case kOldDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case kOutOfMemory:
      return "out of memory";
    case kNotPermitted:
      return "operation not permitted when stream is capturing";
    default:
      return "unknown error";
  }
}
DOUBLE_API int cudaGetDeviceProperties(void* properties, int) {
  std::strcpy(static_cast<char*>(properties), "Double GPU");
  return 0;
}
DOUBLE_API int cudaDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 18 && behaves("integrated") ? 1 : 0;
  return 0;
}
DOUBLE_API int cudaSetDevice(int) { return 0; }
DOUBLE_API int cudaMemGetInfo(size_t* free, size_t* total) {
  *free = kMemoryBytes / 2;
  *total = kMemoryBytes;
  return 0;
}
DOUBLE_API int cudaMalloc(void** memory, size_t size) { return give(std::malloc(size), memory); }
DOUBLE_API int cudaMallocHost(void** memory, size_t size) { return give(std::malloc(size), memory); }
DOUBLE_API int cudaFree(void* memory) { return free_memory(memory); }
DOUBLE_API int cudaFreeHost(void* memory) { return free_memory(memory); }
DOUBLE_API int cudaMemcpyAsync(void* to, const void* from, size_t size, int, void* stream) {
  double_submit(stream, [=] { std::memcpy(to, from, size); });
  return 0;
}
DOUBLE_API int cudaStreamCreateWithFlags(void** stream, unsigned) { return give(new Stream, stream); }
DOUBLE_API int cudaStreamSynchronize(void* stream) {
  return static_cast<Stream*>(stream)->capturing == nullptr ? 0 : kNotPermitted;
}
DOUBLE_API int cudaStreamDestroy(void* stream) { return take_back<Stream>(stream); }
DOUBLE_API int cudaStreamBeginCapture(void* stream, int) {
  if (behaves("no-capture")) return kNotPermitted;
  static_cast<Stream*>(stream)->capturing = new Graph;
  return 0;
}
DOUBLE_API int cudaStreamEndCapture(void* stream, void** graph) {
  Graph* captured = static_cast<Stream*>(stream)->capturing;
  static_cast<Stream*>(stream)->capturing = nullptr;
  return give(captured, graph);
}
DOUBLE_API int cudaGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  return give(new Graph(*static_cast<Graph*>(graph)), executable);
}
DOUBLE_API int cudaGraphLaunch(void* executable, void*) {
  for (const auto& work : static_cast<Graph*>(executable)->work) work();
  return 0;
}
DOUBLE_API int cudaGraphDestroy(void* graph) { return take_back<Graph>(graph); }
DOUBLE_API int cudaGraphExecDestroy(void* executable) { return take_back<Graph>(executable); }
