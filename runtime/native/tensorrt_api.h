// TensorRT's libraries, loaded while the program runs, and what differs between the releases from 8.2 to 11.
//
// The headers decide which releases this program works with: those of the same major version, from the headers' own on.
// The libraries are not linked, so that the program also runs where they are missing, and the few C functions that they
// begin with are looked up by name. Everything else is called through the interfaces' tables of functions.
#ifndef TLC_NATIVE_TENSORRT_API_H_
#define TLC_NATIVE_TENSORRT_API_H_

#include <NvInfer.h>

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "library.h"
#include "tensor.h"

// Whether the headers are of that release or a later one.
#define TLC_TENSORRT_FROM(major, minor) \
  (NV_TENSORRT_MAJOR > (major) || (NV_TENSORRT_MAJOR == (major) && NV_TENSORRT_MINOR >= (minor)))

namespace tlc {

// TensorRT's logger of this process, which prints nothing and keeps errors and warnings. TensorRT has one for the whole
// process: another one is only warned of.
class TensorRtLog : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override;

  void clear();

  // Return the latest errors, or warnings where there are none, for the end of a message: ": ...", or nothing.
  std::string said() const;

  // Return all errors or all warnings, each once.
  std::vector<std::string> errors() const { return lines(true); }
  std::vector<std::string> warnings() const { return lines(false); }

 private:
  std::vector<std::string> lines(bool errors) const;

  mutable std::mutex mutex_;
  std::vector<std::pair<bool, std::string>> lines_;  // whether it is an error, and the words
};

// libnvinfer in this process. Touch it only after Cuda::get(): some releases crash where there is no GPU.
class TensorRt {
 public:
  // Load the library that `named` or TLC_TENSORRT_LIB names, else by its usual name, at the first call. Throws Error,
  // also where its release is not one that the headers fit.
  static TensorRt& get(const std::string& named);

  const std::string& version() const { return version_; }  // such as "10.3.0"
  TensorRtLog& log() { return log_; }

  std::unique_ptr<nvinfer1::IRuntime> make_runtime();
  std::unique_ptr<nvinfer1::IBuilder> make_builder();

  // Return names to load another of TensorRT's libraries by, such as "libnvonnxparser".
  std::vector<std::string> sibling(const std::string& stem) const;

 private:
  explicit TensorRt(const std::string& named);
  void register_plugins();

  Library library_;
  std::string version_;
  TensorRtLog log_;
};

// Return an engine of the bytes of a plan, whose runtime must outlive it. `host_code` is for version-compatible plans,
// which carry a runtime of their own and run it. A plan is trusted like a program. Throws Error with TensorRT's words.
std::unique_ptr<nvinfer1::ICudaEngine> load_engine(TensorRt& tensorrt, nvinfer1::IRuntime& runtime,
                                                   const std::string& plan, const std::string& name, bool host_code,
                                                   int dla_core);

Shape shape_of(const nvinfer1::Dims& dims);

// Throws Error for more dimensions than TensorRT has.
nvinfer1::Dims dims_of(const Shape& shape);

// Return the type's name as numpy has it; throws Error for one that it lacks. `tensor` is for the message.
DType dtype_of(nvinfer1::DataType dtype, const std::string& tensor);

}  // namespace tlc

#endif  // TLC_NATIVE_TENSORRT_API_H_
