// TensorRT 8.2 to 11: engines as models. Where this program was compiled without TensorRT's headers, all of it throws.
#ifndef TLC_NATIVE_TENSORRT_H_
#define TLC_NATIVE_TENSORRT_H_

#include <memory>
#include <string>

#include "backend.h"

namespace tlc {

// Return whether this program was compiled with TensorRT's headers.
bool has_tensorrt();

// Load CUDA's and TensorRT's libraries, and return TensorRT's name and version, such as "tensorrt 10.3.0". The GPU is
// looked for first, because some releases crash where there is none. Throws Error.
std::string load_tensorrt(const OpenOptions& options);

// Load the engine at `path`, which needs its sidecar `path`.json beside it: the engine's SHA-256, release of TensorRT
// and kind of GPU must be this machine's. Throws Error.
std::unique_ptr<Model> open_tensorrt(const std::string& path, const OpenOptions& options);

// Load an engine from memory, without a sidecar; TensorRT itself refuses one of another release or GPU. Throws Error.
std::unique_ptr<Model> open_tensorrt_bytes(const std::string& bytes, const OpenOptions& options);

}  // namespace tlc

#endif  // TLC_NATIVE_TENSORRT_H_
