// What tlc-run needs of the CUDA runtime library, which is loaded while the program runs.
//
// Not linked: one tlc-run then also works on machines without a GPU, and JetPack 4.6 to 7 carry CUDA 10.2 to 13. No
// header of CUDA is needed: the functions have had one signature since CUDA 10.2, except graph instantiation.
// https://docs.nvidia.com/cuda/cuda-runtime-api/
#ifndef TLC_NATIVE_CUDA_H_
#define TLC_NATIVE_CUDA_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "library.h"

namespace tlc {

// The first GPU.
struct CudaDevice {
  std::string name;
  std::string sm;           // compute capability, such as "8.7"
  bool integrated = false;  // whether its memory is the CPU's, as on a Jetson
  int64_t free_bytes = 0;   // where integrated, the page cache counts as used
  int64_t total_bytes = 0;
};

// A loaded libcudart whose first GPU works. Its functions throw Error with CUDA's own words. Streams and graphs are
// CUDA's handles.
class Cuda {
 public:
  // Load the library that TLC_CUDART names, else the first that loads and finds a GPU: one that is newer than the
  // driver loads, and then fails. Throws Error with the first failure.
  static const Cuda& get();

  explicit Cuda(const std::string& library);

  // Return the first GPU; throws Error where there is none or no driver.
  CudaDevice device() const;

  void* malloc(size_t size_bytes) const;
  void free(void* memory) const;  // this and the other functions that give something back do not throw
  void* malloc_host(size_t size_bytes) const;
  void free_host(void* memory) const;

  void copy_to_device(void* device, const void* host, size_t size_bytes, void* stream) const;
  void copy_to_host(void* host, const void* device, size_t size_bytes, void* stream) const;

  void* create_stream() const;  // one that does not wait for the default stream
  void synchronize(void* stream) const;
  void destroy_stream(void* stream) const;

  void begin_capture(void* stream) const;  // record what this thread queues instead of running it
  void* end_capture(void* stream) const;   // return the graph of what was queued since
  void* instantiate(void* graph) const;    // return the executable form of a graph
  void launch(void* executable, void* stream) const;
  void destroy_graph(void* graph) const;
  void destroy_executable(void* executable) const;

 private:
  template <typename... Parameters, typename... Arguments>
  void call(const char* name, int (*function)(Parameters...), Arguments... arguments) const {
    const int status = function(arguments...);
    if (status != 0) fail(name, status);
  }
  [[noreturn]] void fail(const char* name, int status) const;
  int attribute(int number) const;

  Library library_;
};

}  // namespace tlc

#endif  // TLC_NATIVE_CUDA_H_
