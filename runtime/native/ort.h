// ONNX Runtime, loaded while the program runs. Every handle is released in the reverse order of its making.
#ifndef TLC_NATIVE_ORT_H_
#define TLC_NATIVE_ORT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "input.h"
#include "ort_api.h"

namespace tlc {

// A libonnxruntime in this process.
class OrtLibrary {
 public:
  // Load `path`; if it is empty, what TLC_ORT_LIB names, else the library by its usual names. Throws Error.
  explicit OrtLibrary(const std::string& path);

  const OrtApi& api() const { return *api_; }
  const std::string& version() const { return version_; }

  // Throw Error with `what` and ONNX Runtime's own message unless `status` is null.
  void check(OrtStatus* status, const std::string& what, const std::string& hint) const;

 private:
  std::unique_ptr<void, int (*)(void*)> handle_;
  const OrtApi* api_ = nullptr;
  std::string version_;
};

template <typename T>
using OrtHandle = std::unique_ptr<T, void (*)(T*)>;

// A model ready to run on the CPU provider. The library must outlive it.
class OrtModel {
 public:
  // Load the file at `path` with `threads` threads inside one operator and none across operators. Throws Error.
  OrtModel(const OrtLibrary& library, const std::string& path, int threads);

  const std::vector<InputSpec>& inputs() const { return inputs_; }

  // Bind one buffer to each input, in the order of inputs(); the buffers must outlive every run().
  void bind(std::vector<Buffer>& buffers);

  // Run once; the outputs are made and dropped, as a caller that reads them would.
  void run();

 private:
  std::string name(OrtStatus* (*get)(const OrtSession*, size_t, OrtAllocator*, char**), size_t index) const;
  InputSpec input_spec(size_t index) const;

  const OrtLibrary& library_;
  OrtHandle<OrtEnv> env_;
  OrtHandle<OrtSession> session_;
  std::vector<InputSpec> inputs_;
  std::vector<std::string> outputs_;
  std::vector<OrtHandle<OrtValue>> values_;
};

}  // namespace tlc

#endif  // TLC_NATIVE_ORT_H_
