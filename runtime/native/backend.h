// What runs a model: ONNX Runtime, OpenVINO or TensorRT.
#ifndef TLC_NATIVE_BACKEND_H_
#define TLC_NATIVE_BACKEND_H_

#include <memory>
#include <string>
#include <vector>

#include "tensor.h"

namespace tlc {

// One stream of inferences; used by one thread at a time. It must not outlive its model.
class Context {
 public:
  virtual ~Context() = default;

  // Run once. `feeds` are in the order of Model::inputs(), and `outputs` become those of Model::outputs(): their
  // buffers are used again where they are large enough. Throws Error.
  virtual void run(const std::vector<Tensor>& feeds, std::vector<Tensor>& outputs) = 0;
};

// A loaded model. Its functions may be called by several threads at once.
class Model {
 public:
  virtual ~Model() = default;

  virtual const std::vector<TensorSpec>& inputs() const = 0;
  virtual const std::vector<TensorSpec>& outputs() const = 0;

  // Return the runtime with its version, such as "onnxruntime 1.31.1".
  virtual std::string runtime() const = 0;

  virtual std::unique_ptr<Context> make_context() = 0;
};

struct OpenOptions {
  std::string backend;  // "onnxruntime", "openvino" or "tensorrt"
  std::string library;  // path of the runtime's library; empty: search
  int threads = 1;      // inside one inference
  std::string profile;  // onnxruntime: time every node, and write a file whose name begins so; empty: do not
};

// Load the runtime's library without a model, so that what a model takes can be told from what the runtime takes.
// Returns its name and version, such as "onnxruntime 1.31.1". Throws Error where this program or this machine lacks the
// runtime.
std::string load_runtime(const OpenOptions& options);

// Load a model from a file of its own. Throws Error.
std::unique_ptr<Model> open_model(const std::string& path, const OpenOptions& options);

// Load a model from memory: an ONNX file's bytes, or an engine's for TensorRT. The bytes are not kept. Throws Error.
std::unique_ptr<Model> open_model_bytes(const std::string& bytes, const OpenOptions& options);

// Return the names of the runtimes that this program was built with.
std::vector<std::string> built_backends();

}  // namespace tlc

#endif  // TLC_NATIVE_BACKEND_H_
