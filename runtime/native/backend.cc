#include "backend.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "error.h"
#include "openvino.h"
#include "ort.h"
#include "tensorrt.h"

namespace tlc {

namespace {

struct Backend {
  const char* name;
  std::string (*load)(const OpenOptions& options);
  std::unique_ptr<Model> (*open)(const std::string& path, const OpenOptions& options);
  std::unique_ptr<Model> (*open_bytes)(const std::string& bytes, const OpenOptions& options);
};

const Backend kBackends[] = {
    {"onnxruntime", load_ort, open_ort, open_ort_bytes},
    {"openvino", load_openvino, open_openvino, open_openvino_bytes},
    {"tensorrt", load_tensorrt, open_tensorrt, open_tensorrt_bytes},
};

const Backend& backend(const std::string& name) {
  for (const Backend& each : kBackends) {
    if (each.name == name) return each;
  }
  throw Error("there is no runtime '" + name + "'", "Choose onnxruntime, openvino or tensorrt.");
}

}  // namespace

std::string load_runtime(const OpenOptions& options) { return backend(options.backend).load(options); }

std::unique_ptr<Model> open_model(const std::string& path, const OpenOptions& options) {
  struct stat status{};
  if (stat(path.c_str(), &status) != 0) {
    throw Error("cannot read " + path + ": " + std::strerror(errno), "Check the path.");
  }
  if (!S_ISREG(status.st_mode)) throw Error(path + " is not a file", "Name an ONNX file, an engine or a bundle.");
  return backend(options.backend).open(path, options);
}

std::unique_ptr<Model> open_model_bytes(const std::string& bytes, const OpenOptions& options) {
  return backend(options.backend).open_bytes(bytes, options);
}

std::vector<std::string> built_backends() {
  std::vector<std::string> names;
  for (const Backend& each : kBackends) {
    if (each.load != load_tensorrt || has_tensorrt()) names.push_back(each.name);
  }
  return names;
}

}  // namespace tlc
