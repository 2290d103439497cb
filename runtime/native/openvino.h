// OpenVINO's CPU device, loaded while the program runs.
#ifndef TLC_NATIVE_OPENVINO_H_
#define TLC_NATIVE_OPENVINO_H_

#include <memory>
#include <string>

#include "backend.h"

namespace tlc {

// Load the library, and return its name and release, such as "openvino 2026.4.1". Throws Error.
std::string load_openvino(const OpenOptions& options);

// Load an ONNX file, as runtime/openvino.py does: one stream, tuned for latency, float32 computed in float32. Throws
// Error.
std::unique_ptr<Model> open_openvino(const std::string& path, const OpenOptions& options);

// Load an ONNX file's bytes; as open_openvino.
std::unique_ptr<Model> open_openvino_bytes(const std::string& bytes, const OpenOptions& options);

}  // namespace tlc

#endif  // TLC_NATIVE_OPENVINO_H_
