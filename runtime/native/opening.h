// From what a command line or a request names to a model: a bundle, an ONNX file or an engine.
#ifndef TLC_NATIVE_OPENING_H_
#define TLC_NATIVE_OPENING_H_

#include <memory>
#include <string>

#include "args.h"
#include "backend.h"
#include "bundle.h"

namespace tlc {

// What is opened, and by which runtime.
struct Source {
  std::string path;                      // of the bundle, the ONNX file or the engine
  std::shared_ptr<const Bundle> bundle;  // null for a file that is none
  std::string plan;                      // engine of a bundle that runs in TensorRT; empty otherwise
  OpenOptions options;
};

// Return the source at `path`: a bundle (.tlc) in the runtime of its target, an ONNX file (.onnx) in ONNX Runtime, an
// engine (.plan, .engine) in TensorRT; --backend, --threads, --plan and the libraries as `args` has them. Throws Error
// for another suffix, a bundle that is none, and an engine or ONNX file in a runtime that cannot run it.
Source find_source(const std::string& path, const Args& args);

// Load the model; of a bundle, the one to deploy. Throws Error.
std::unique_ptr<Model> open_source(const Source& source);

// Load the model of a bundle that is open already; as open_source. Throws Error.
std::unique_ptr<Model> open_bundle(const Bundle& bundle, const Args& args);

}  // namespace tlc

#endif  // TLC_NATIVE_OPENING_H_
