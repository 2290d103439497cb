// ONNX Runtime's CPU provider, loaded while the program runs.
#ifndef TLC_NATIVE_ORT_H_
#define TLC_NATIVE_ORT_H_

#include <memory>
#include <string>

#include "backend.h"

namespace tlc {

// Load libonnxruntime: the library of `options`, else what TLC_ORT_LIB names, else the one by its usual names. Returns
// its name and version, such as "onnxruntime 1.31.1". It stays loaded until the process ends. Throws Error.
std::string load_ort(const OpenOptions& options);

// Load an ONNX file: all graph optimisations, one operator after the other. Throws Error.
std::unique_ptr<Model> open_ort(const std::string& path, const OpenOptions& options);

// Load an ONNX file's bytes, which are not kept: one file, without external data. Throws Error.
std::unique_ptr<Model> open_ort_bytes(const std::string& bytes, const OpenOptions& options);

// Return the file with the times of all runs so far of a model of open_ort() or open_ort_bytes() with
// OpenOptions::profile; once. Throws Error.
std::string end_ort_profile(Model& model);

}  // namespace tlc

#endif  // TLC_NATIVE_ORT_H_
